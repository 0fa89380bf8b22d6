// SPDX-License-Identifier: Apache-2.0
// Label one LiDAR sweep with a network that `pcseg export` wrote, without Python:
//
//   label_sweep student.onnx sweep.bin sweep.label [threads]
//
// sweep.bin holds x, y, z [m] and intensity (0..1) of each point as float32, as in KITTI.
// sweep.label gets one uint32 per point, as in SemanticKITTI: label_file_ids of student.json, 0 for
// points without a label. Settings are read from the metadata of student.onnx, which repeats
// student.json.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "pcseg.h"

using Sweep = std::unique_ptr<pcseg_sweep, decltype(&pcseg_sweep_free)>;

std::string metadata(const Ort::Session& session, const char* key) {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto value = session.GetModelMetadata().LookupCustomMetadataMapAllocated(key, allocator);
  if (!value) throw std::runtime_error(std::string("student.onnx has no ") + key);
  return value.get();
}

// The numbers of a JSON list, or the one of a plain number.
std::vector<double> numbers(const std::string& json) {
  std::vector<double> values;
  const char* at = json.c_str();
  while (*at) {
    char* end;
    const double value = std::strtod(at, &end);
    if (end != at) values.push_back(value);
    at = end == at ? at + 1 : end;
  }
  return values;
}

// The texts of a JSON list of texts, or the one of a plain text; without escapes.
std::vector<std::string> texts(const std::string& json) {
  std::vector<std::string> values;
  for (size_t open = json.find('"'); open != std::string::npos; open = json.find('"', open)) {
    const size_t close = json.find('"', open + 1);
    if (close == std::string::npos) break;
    values.push_back(json.substr(open + 1, close - open - 1));
    open = close + 1;
  }
  return values;
}

Sweep sweep_for(const Ort::Session& session) {
  pcseg_settings settings{};
  settings.cylindrical = texts(metadata(session, "voxels")).at(0) == "cylindrical";
  const auto size = numbers(metadata(session, "voxel_size"));
  std::copy_n(size.data(), std::min<size_t>(3, size.size()), settings.voxel_size);
  settings.max_range_m = numbers(metadata(session, "max_range_m")).at(0);
  const auto names = texts(metadata(session, "features"));
  const auto divisors = numbers(metadata(session, "feature_divisors"));
  settings.features = static_cast<int32_t>(std::min<size_t>(names.size(), PCSEG_MAX_FEATURES));
  for (int32_t k = 0; k < settings.features; ++k) {
    settings.feature[k] = pcseg_feature(names[k].c_str());
    settings.divisor[k] = static_cast<float>(divisors.at(k));
  }
  Sweep sweep(pcseg_sweep_new(&settings), pcseg_sweep_free);
  if (!sweep) throw std::runtime_error("student.onnx has settings that pcseg.h does not know");
  return sweep;
}

std::vector<float> read_points(const char* path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  const auto bytes = static_cast<size_t>(file.tellg());
  if (bytes % (4 * sizeof(float))) throw std::runtime_error("the sweep has incomplete points");
  std::vector<float> points(bytes / sizeof(float));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(points.data()), static_cast<std::streamsize>(bytes));
  return points;
}

// Logits (voxels, classes) of a sweep.
Ort::Value run(Ort::Session& session, const pcseg_sweep* sweep, int64_t features) {
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<const char*> names{"features"};
  std::vector<Ort::Value> inputs;
  const int64_t shape[] = {pcseg_sweep_rows(sweep, 0), features};
  inputs.push_back(Ort::Value::CreateTensor<float>(
      memory, const_cast<float*>(pcseg_sweep_features(sweep)), shape[0] * shape[1], shape, 2));
  for (int32_t index = 0; index < PCSEG_TABLES; ++index) {
    pcseg_table table;
    pcseg_sweep_table(sweep, index, &table);
    const int64_t sides[] = {table.offsets, table.rows};
    names.push_back(table.name);
    inputs.push_back(Ort::Value::CreateTensor<int32_t>(
        memory, const_cast<int32_t*>(table.values), sides[0] * sides[1], sides, 2));
  }
  const char* const output = "logits";
  auto outputs = session.Run(Ort::RunOptions{}, names.data(), inputs.data(), inputs.size(),
                             &output, 1);
  return std::move(outputs.front());
}

int label(const char* model, const char* from, const char* to, int threads) {
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "label_sweep");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(threads);
  Ort::Session session(env, model, options);
  const Sweep sweep = sweep_for(session);
  const auto ids = numbers(metadata(session, "label_file_ids"));
  const auto features = static_cast<int64_t>(texts(metadata(session, "features")).size());

  const std::vector<float> points = read_points(from);
  const auto count = static_cast<int64_t>(points.size() / 4);
  const auto start = std::chrono::steady_clock::now();
  if (pcseg_sweep_build(sweep.get(), points.data(), points.data() + 3, count, 4, threads))
    throw std::runtime_error("the tables could not be made");
  const Ort::Value logits = run(session, sweep.get(), features);

  const int32_t* voxel = pcseg_sweep_voxels(sweep.get());
  const float* scores = logits.GetTensorData<float>();
  std::vector<uint32_t> labels(static_cast<size_t>(count), 0);
  for (int64_t i = 0; i < count; ++i) {
    if (voxel[i] < 0) continue;
    const float* row = scores + voxel[i] * ids.size();
    labels[i] = static_cast<uint32_t>(ids[std::max_element(row, row + ids.size()) - row]);
  }
  const std::chrono::duration<double, std::milli> elapsed =
      std::chrono::steady_clock::now() - start;
  std::ofstream file(to, std::ios::binary);
  file.write(reinterpret_cast<const char*>(labels.data()),
             static_cast<std::streamsize>(labels.size() * sizeof(uint32_t)));
  if (!file.flush()) throw std::runtime_error(std::string("cannot write ") + to);
  std::printf("%lld points, %lld voxels, %.1f ms\n", static_cast<long long>(count),
              static_cast<long long>(pcseg_sweep_rows(sweep.get(), 0)), elapsed.count());
  return 0;
}

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: label_sweep student.onnx sweep.bin sweep.label [threads]\n");
    return 2;
  }
  try {
    return label(argv[1], argv[2], argv[3], argc > 4 ? std::max(1, std::atoi(argv[4])) : 1);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
