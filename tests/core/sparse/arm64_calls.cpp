// SPDX-License-Identifier: Apache-2.0
// Calls functions of a shared library for another process; see arm64.py. Built for ARM64.
//
//   arm64_calls LIBRARY
//
// A request on the standard input: 64 bytes of name, the three sizes, then for each buffer its size
// and bytes, then the pointers, then the arguments, then a float. The answer: what the function
// returned, then the bytes of each buffer.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

namespace {

struct Sizes {
  int64_t buffers, pointers, arguments;
};

// Memory whose end is the end of a page; the next page cannot be read.
class Buffer {
 public:
  explicit Buffer(size_t size) : size_(size) {
    const size_t page = sysconf(_SC_PAGESIZE), used = (size + page - 1) / page * page;
    mapped_ = used + page;
    void* all = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    begin_ = static_cast<char*>(all);
    mprotect(begin_ + used, page, PROT_NONE);
    data_ = begin_ + used - size;
  }
  Buffer(Buffer&& other) noexcept
      : begin_(other.begin_), data_(other.data_), size_(other.size_), mapped_(other.mapped_) {
    other.mapped_ = 0;
  }
  ~Buffer() {
    if (mapped_) munmap(begin_, mapped_);
  }
  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  char *begin_, *data_;
  size_t size_, mapped_;
};

// Write the address of byte `byte` of a buffer to a place in another.
struct Pointer {
  int64_t buffer, place, to, byte;
};

// A number, or with `buffer` >= 0 the address of byte `value` of a buffer.
struct Argument {
  int64_t value, buffer;
};

// Integers and addresses take registers of their own, then 8 bytes each; floats take others. So one
// type serves all functions of this library.
using Function = int64_t (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                             int64_t, int64_t, int64_t, int64_t, float);

template <class T>
bool get(T* to, size_t count = 1) {
  return count == 0 || fread(to, sizeof(T), count, stdin) == count;
}

int fail(const char* text) {
  fprintf(stderr, "%s\n", text);
  return 1;
}

}  // namespace

int main(int, char** names) {
  if (!dlopen(names[1], RTLD_NOW | RTLD_GLOBAL)) return fail(dlerror());
  char name[64];
  while (get(name, sizeof name)) {
    Sizes sizes;
    if (!get(&sizes)) return fail("sizes");
    std::vector<Buffer> buffers;
    for (int64_t i = 0; i < sizes.buffers; ++i) {
      int64_t size;
      if (!get(&size)) return fail("size");
      buffers.emplace_back(size);
      if (!get(buffers.back().data(), size)) return fail("buffer");
    }
    const auto address = [&](int64_t buffer, int64_t byte) { return buffers[buffer].data() + byte; };
    for (int64_t i = 0; i < sizes.pointers; ++i) {
      Pointer p;
      if (!get(&p)) return fail("pointer");
      *reinterpret_cast<char**>(address(p.buffer, p.place)) = address(p.to, p.byte);
    }
    int64_t values[12] = {};
    for (int64_t i = 0; i < sizes.arguments; ++i) {
      Argument a;
      if (!get(&a)) return fail("argument");
      values[i] = a.buffer < 0 ? a.value
                               : reinterpret_cast<int64_t>(address(a.buffer, a.value));
    }
    float real;
    if (!get(&real)) return fail("float");
    const auto call = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
    if (!call) return fail(dlerror());
    const int64_t* v = values;
    const int64_t result = call(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10],
                                v[11], real);
    fwrite(&result, sizeof result, 1, stdout);
    for (const auto& buffer : buffers) fwrite(buffer.data(), 1, buffer.size(), stdout);
    fflush(stdout);
  }
  return 0;
}
