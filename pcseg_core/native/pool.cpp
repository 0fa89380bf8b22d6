// SPDX-License-Identifier: Apache-2.0
// Threads. Inside a process with OpenMP (torch's CPU build) long work runs on that pool, so that
// two pools never compete for the cores. A small pool of our own does it elsewhere, and brief work.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "native.h"

namespace pcseg {
namespace {

struct Job {
  void (*body)(void*, int64_t);
  void* context;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};

  void run() {
    try {
      for (int64_t task; (task = next.fetch_add(1)) < tasks;) body(context, task);
    } catch (...) {  // out of memory for the scratch of this thread
      failed = true;
      next = tasks;
    }
  }
};

class Pool {
 public:
  // Run the job on this thread and up to `helpers` others; false where the pool is busy.
  bool run(Job& job, int helpers) {
    std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
    if (!busy.owns_lock()) return false;
    grow(helpers);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      open_ = helpers;
    }
    wake_.notify_all();
    job.run();
    // Helpers that did not come in time are not waited for: on a busy machine one that is not
    // scheduled costs nothing.
    std::unique_lock<std::mutex> lock(mutex_);
    open_ = 0;
    if (active_ != 0) {
      lock.unlock();
      spin([&] { return active_ == 0; });
      lock.lock();
      done_.wait(lock, [&] { return active_ == 0; });
    }
    job_ = nullptr;
    return true;
  }

 private:
  void grow(int helpers) {
    while (static_cast<int>(workers_.size()) < helpers) {
      try {
        workers_.emplace_back([this] { serve(); });
      } catch (const std::system_error&) {
        return;  // no more threads to be had: fewer do the work
      }
    }
  }

  void serve() {
    for (;;) {
      spin([&] { return open_ > 0; });
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return open_ > 0; });
      --open_;
      ++active_;
      Job* job = job_;
      lock.unlock();
      job->run();
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  // Wait briefly for what is about to happen, cheaper than to sleep between two layers.
  template <class F>
  static void spin(const F& happened) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
    while (!happened() && std::chrono::steady_clock::now() < end) pause();
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::mutex busy_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  Job* job_ = nullptr;
  std::atomic<int> open_{0}, active_{0};  // changed under the mutex, read without it in spin
};

// Threads do not survive a fork: the child starts a pool of its own. Never destroyed, because
// its threads may outlive static destructors.
Pool& pool() {
  static std::mutex mutex;
  static Pool* instance = nullptr;
  static pid_t owner = 0;
  std::lock_guard<std::mutex> lock(mutex);
  if (owner != getpid()) {
    instance = new Pool;
    owner = getpid();
  }
  return *instance;
}

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
std::atomic<GompParallel> gomp_parallel{nullptr};

void run(Job& job, int threads, GompParallel gomp) {
  if (threads > job.tasks) threads = static_cast<int>(job.tasks);
  if (threads <= 1) {
    job.run();
  } else if (gomp) {
    gomp([](void* shared) { static_cast<Job*>(shared)->run(); }, &job, threads, 0);
  } else if (!pool().run(job, threads - 1)) {
    job.run();
  }
  if (job.failed) throw std::bad_alloc();
}

struct Scratch {
  char* data = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(data); }
};

}  // namespace

void parallel(int threads, int64_t tasks, void (*body)(void*, int64_t), void* context) {
  Job job{body, context, tasks};
  run(job, threads, gomp_parallel);
}

void parallel_brief(int threads, int64_t tasks, void (*body)(void*, int64_t), void* context) {
  Job job{body, context, tasks};
  run(job, threads, nullptr);
}

char* thread_scratch(size_t bytes) {
  thread_local Scratch scratch;
  if (scratch.size < bytes) {
    std::free(scratch.data);
    scratch.size = 0;
    bytes = (bytes + 4095) / 4096 * 4096;
    scratch.data = static_cast<char*>(std::aligned_alloc(4096, bytes));
    if (!scratch.data) throw std::bad_alloc();
    scratch.size = bytes;
  }
  return scratch.data;
}

}  // namespace pcseg

// Use this GOMP_parallel for all work from now on; null returns to the pool of our own.
PCSEG_API void pcseg_use_openmp(void* function) {
  pcseg::gomp_parallel = reinterpret_cast<pcseg::GompParallel>(function);
}
