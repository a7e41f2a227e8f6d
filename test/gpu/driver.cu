// Copyright (c) 2026 PaddlePaddle Authors. All Rights Reserved.
//
// Licensed under the Apache License, Version 2.0 (the "License");
// you may not use this file except in compliance with the License.
// You may obtain a copy of the License at
//
//     http://www.apache.org/licenses/LICENSE-2.0
//
// Unless required by applicable law or agreed to in writing, software
// distributed under the License is distributed on an "AS IS" BASIS,
// WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
// See the License for the specific language governing permissions and
// limitations under the License.

// Calls every launch_xxx without Paddle, on outputs between guard bytes, to see that nothing is
// written outside them nor to rows that hold no token, and nothing read behind the grouped GEMM's x. Run
// under compute-sanitizer too.
//
//   driver [--exact] [name ...]   exact: no guards, so that the sanitizer knows each tensor's end
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "activation_quant/launch.h"
#include "common/driver_function.h"
#include "common/grid_dependency.cuh"
#include "common/launch_counter.h"
#include "common/launch_kernel.cuh"
#include "grouped_gemm/launch.h"
#include "mla_up/launch.h"
#include "moe_route/launch.h"
#include "weight_pack/launch.h"

namespace w4afp8 {
namespace {

constexpr uint8_t kGuard = 0xA5;   // around every tensor
constexpr uint8_t kPoison = 0xCD;  // in an output before the launch
size_t guard_bytes = 4096;

// How launches are made.
enum class Way {
  kPlain,
  kInNewThread,  // by a thread that has done nothing with CUDA before
  kInGraph,      // captured in the strictest mode, then replayed
};
Way way = Way::kPlain;
bool failed = false;

void require(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("FAILED %s\n", what.c_str());
  failed = true;
}

void require_success(cudaError_t error, const std::string& what) {
  require(error == cudaSuccess, what + ": " + cudaGetErrorString(error));
  if (error != cudaSuccess) std::exit(1);  // the context is lost
}

// Device memory between two guards.
class Tensor {
 public:
  explicit Tensor(const std::vector<uint8_t>& bytes) : size_(bytes.size()) {
    std::vector<uint8_t> host(size_ + 2 * guard_bytes, kGuard);
    std::copy(bytes.begin(), bytes.end(), host.begin() + guard_bytes);
    require_success(cudaMalloc(&memory_, host.size()), "cudaMalloc");
    require_success(cudaMemcpy(memory_, host.data(), host.size(), cudaMemcpyHostToDevice), "copy");
  }
  ~Tensor() { cudaFree(memory_); }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(memory_ + guard_bytes);
  }

  // Checks the guards and returns what is between them.
  std::vector<uint8_t> read(const std::string& name) const {
    std::vector<uint8_t> host(size_ + 2 * guard_bytes);
    require_success(cudaMemcpy(host.data(), memory_, host.size(), cudaMemcpyDeviceToHost), name);
    for (size_t i = 0; i < guard_bytes; ++i) {
      const bool intact = host[i] == kGuard && host[guard_bytes + size_ + i] == kGuard;
      require(intact, name + ": a guard byte was written");
      if (!intact) break;
    }
    return {host.begin() + guard_bytes, host.end() - guard_bytes};
  }

 private:
  size_t size_;
  uint8_t* memory_ = nullptr;
};

// A copy of `bytes` in device memory behind which nothing is mapped: to read or write beyond it is an error.
class MemoryEnd {
 public:
  explicit MemoryEnd(const std::vector<uint8_t>& bytes) {
    CUmemAllocationProp place = {};
    place.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    place.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
    const CUmemAccessDesc access = {place.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    size_t step = 0;
    call<PFN_cuMemGetAllocationGranularity_v10020>("cuMemGetAllocationGranularity", &step, &place,
                                                   CU_MEM_ALLOC_GRANULARITY_MINIMUM);
    mapped_ = (bytes.size() + step - 1) / step * step;
    reserved_ = mapped_ + step;
    call<PFN_cuMemCreate_v10020>("cuMemCreate", &memory_, mapped_, &place, 0ull);
    call<PFN_cuMemAddressReserve_v10020>("cuMemAddressReserve", &begin_, reserved_, size_t{0},
                                         CUdeviceptr{0}, 0ull);
    call<PFN_cuMemMap_v10020>("cuMemMap", begin_, mapped_, size_t{0}, memory_, 0ull);
    call<PFN_cuMemSetAccess_v10020>("cuMemSetAccess", begin_, mapped_, &access, size_t{1});
    data_ = reinterpret_cast<uint8_t*>(begin_ + mapped_ - bytes.size());
    require_success(cudaMemcpy(data_, bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "copy");
  }
  ~MemoryEnd() {
    call<PFN_cuMemUnmap_v10020>("cuMemUnmap", begin_, mapped_);
    call<PFN_cuMemAddressFree_v10020>("cuMemAddressFree", begin_, reserved_);
    call<PFN_cuMemRelease_v10020>("cuMemRelease", memory_);
  }
  MemoryEnd(const MemoryEnd&) = delete;
  MemoryEnd& operator=(const MemoryEnd&) = delete;

  uint8_t* data() const { return data_; }

 private:
  template <typename Function, typename... Arguments>
  static void call(const char* name, Arguments... arguments) {
    const auto function = driver_function<Function>(name);
    require_success(function != nullptr ? cudaSuccess : cudaErrorNotSupported, name);
    const CUresult result = function(arguments...);
    require_success(result == CUDA_SUCCESS ? cudaSuccess : cudaErrorUnknown, name);
  }

  size_t mapped_ = 0, reserved_ = 0;
  CUmemGenericAllocationHandle memory_ = 0;
  CUdeviceptr begin_ = 0;
  uint8_t* data_ = nullptr;
};

std::mt19937 generator(1);

std::vector<uint8_t> random_bytes(size_t count) {
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(generator());
  return bytes;
}

std::vector<uint8_t> poison(size_t count) { return std::vector<uint8_t>(count, kPoison); }

template <typename T>
std::vector<uint8_t> bytes_of(const std::vector<T>& values) {
  std::vector<uint8_t> bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

void replay(const std::string& name, const std::function<void(cudaStream_t)>& make) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  require_success(cudaStreamCreate(&stream), name);
  require_success(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), name);
  make(stream);
  require_success(cudaStreamEndCapture(stream, &graph), name);
  require_success(cudaGraphInstantiate(&executable, graph, 0), name);
  require_success(cudaGraphLaunch(executable, stream), name);
  require_success(cudaDeviceSynchronize(), name);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

template <typename Params>
void run(const std::string& name, const Params& params,
         cudaError_t (*launch)(const Params&, cudaStream_t)) {
  const char* reason = check(params);
  require(reason == nullptr, name + ": " + (reason ? reason : ""));
  if (reason != nullptr) return;
  const auto make = [&](cudaStream_t stream) { require_success(launch(params, stream), name); };
  if (way == Way::kInGraph) {
    replay(name, make);
  } else if (way == Way::kInNewThread) {
    std::thread(make, nullptr).join();
  } else {
    make(nullptr);
  }
  require_success(cudaDeviceSynchronize(), name);
}

// What the kernel before a launch that starts early writes, long after that has started.
struct LateWords {
  const Tensor* from = nullptr;
  void* to = nullptr;
  int64_t count = 0;
};
constexpr int kLateTensors = 3;  // at most

struct LateCopies {
  struct {
    const uint32_t* from;
    uint32_t* to;
    int64_t count;
  } of[kLateTensors];
};

// One long after the other.
__global__ void write_late(LateCopies copies) {
  constexpr int64_t kCycles = 100000;
  wait_for_previous_grids();
  launch_dependents();
  for (const auto& copy : copies.of) {
    for (const int64_t begin = clock64(); clock64() - begin < kCycles;) {
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < copy.count; i += blockDim.x) copy.to[i] = copy.from[i];
  }
}

// Launches what starts early behind a kernel that writes these words late, in this order. Before that they are negative
// sums, or NaN.
template <typename Params>
void run_early(const std::string& name, const Params& params,
               cudaError_t (*launch)(const Params&, cudaStream_t),
               const std::vector<LateWords>& late) {
  constexpr int kBefore = 0xFF;
  LateCopies copies = {};
  for (size_t i = 0; i < late.size(); ++i) {
    const LateWords& words = late[i];
    copies.of[i] = {words.from->as<uint32_t>(), static_cast<uint32_t*>(words.to), words.count};
    require_success(cudaMemset(words.to, kBefore, words.count * 4), name);
  }
  require_success(cudaDeviceSynchronize(), name);
  require_success(launch_dependent_kernel(write_late, 1, 256, nullptr, copies), name);
  require_success(launch(params, nullptr), name);
  require_success(cudaDeviceSynchronize(), name);
}

// Tokens of the experts in either mode: prefix sums, or counts where padding > 0.
struct Experts {
  std::vector<int32_t> counts;
  int64_t padding;

  int64_t num_rows() const {
    if (padding > 0) return static_cast<int64_t>(counts.size()) * padding;
    return std::accumulate(counts.begin(), counts.end(), int64_t{3});  // 3 rows hold no token
  }
  std::vector<int32_t> entries() const {
    if (padding > 0) return counts;
    std::vector<int32_t> sums = {0};
    for (int32_t count : counts) sums.push_back(sums.back() + count);
    return sums;
  }
  TokenLayout layout(const Tensor& tokens) const {
    return {tokens.as<int32_t>(), false,
            padding == 0,         padding,
            num_rows(),           static_cast<int64_t>(counts.size())};
  }
  bool holds_token(int64_t row) const {
    const std::vector<int32_t> all = entries();
    return padding > 0 ? row % padding < all[row / padding] : row < all.back();
  }
};

const std::vector<Experts> kExperts = {
    {{40, 0, 5}, 0}, {{0, 0, 0}, 0}, {{300, 1, 129}, 0}, {{40, 0, 64}, 64}, {{1, 7, 0}, 9}};

// Rows without a token keep their poison.
void check_rows(const std::string& name, const Experts& experts, const std::vector<uint8_t>& out) {
  const int64_t row_bytes = static_cast<int64_t>(out.size()) / experts.num_rows();
  for (int64_t row = 0; row < experts.num_rows(); ++row) {
    if (experts.holds_token(row)) continue;
    for (int64_t i = 0; i < row_bytes; ++i) {
      if (out[row * row_bytes + i] == kPoison) continue;
      return require(false, name + ": a row without a token was written");
    }
  }
}

void weight_pack() {
  for (const WeightFormat format : {WeightFormat::kInt4, WeightFormat::kMxfp4}) {
    for (const auto& [out, in] : {std::pair<int64_t, int64_t>{72, 96}, {264, 160}, {520, 640}}) {
      const WeightLayout layout = {out, in};
      const Tensor codes(random_bytes(2 * out * in / 2)), back(poison(2 * out * in / 2));
      const Tensor packed(poison(2 * layout.expert_bytes()));
      run("pack_weight",
          WeightPackParams{codes.as<uint8_t>(), packed.as<uint8_t>(), 2, out, in, format},
          launch_pack_weight);
      run("unpack_weight",
          WeightPackParams{back.as<uint8_t>(), packed.as<uint8_t>(), 2, out, in, format},
          launch_unpack_weight);
      packed.read("packed");
      require(codes.read("codes") == back.read("unpacked"), "unpacking does not undo packing");
    }
  }
}

void quant_per_token() {
  for (const int64_t features : {1, 100, 4096, 20000}) {
    const Tensor x(random_bytes(5 * features * 2)), out(poison(5 * features));
    const Tensor scale(poison(5 * 4));
    run("quant_per_token",
        QuantPerTokenParams{x.as<void>(), out.as<uint8_t>(), scale.as<float>(), 5, features,
                            DataType::kBFloat16},
        launch_quant_per_token);
    out.read("quant_per_token, out");
    scale.read("quant_per_token, scale");
  }
}

void activation_quant() {
  for (const Experts& experts : kExperts) {
    for (const int64_t features : {20, 192, 4096}) {
      const int64_t rows = experts.num_rows();
      const Tensor h(random_bytes(rows * features * 4)), tokens(bytes_of(experts.entries()));
      const Tensor out(poison(rows * features)), scale(poison(rows * 4));
      ActivationQuantParams params{
          h.as<void>(), out.as<uint8_t>(),  scale.as<float>(),   experts.layout(tokens),
          features,     DataType::kFloat16, Activation::kSwiglu, features == 4096 ? 2048 : -1};
      run("activation_quant", params, launch_activation_quant);
      const std::vector<uint8_t> expected = out.read("activation_quant, out");
      check_rows("activation_quant, out", experts, expected);
      check_rows("activation_quant, scale", experts, scale.read("activation_quant, scale"));

      params.starts_early = params.consumes_h = true;
      const Tensor late_h(h.read("h")), again(poison(rows * features)),
          scale_again(poison(rows * 4));
      params.out = again.as<uint8_t>();
      params.scale = scale_again.as<float>();
      run_early("activation_quant", params, launch_activation_quant,
                {{&late_h, h.as<void>(), rows * features}});
      require(again.read("activation_quant, early") == expected &&
                  scale_again.read("activation_quant, early") == scale.read("scale"),
              "activation_quant: another result of a launch that starts early");
      h.read("activation_quant, h that it consumed");
    }
  }
}

void moe_route() {
  for (const int64_t experts : {4, 40, 300, 1000}) {
    const int64_t tokens = 9, topk = 4;
    const Tensor logits(random_bytes(tokens * experts * 4));
    const Tensor weights(poison(tokens * topk * 4)), ids(poison(tokens * topk * 4));
    const Tensor sums(poison((experts + 1) * 4));
    run("moe_route",
        MoeRouteParams{logits.as<void>(), nullptr, weights.as<float>(), ids.as<int32_t>(), tokens,
                       experts, topk, DataType::kFloat32, RouteScore::kSoftmax, true, 1.0f, 4,
                       experts == 4 ? 4 : 2, sums.as<int32_t>(), experts + 1},
        launch_moe_route);
    require(sums.read("moe_route, sums") == std::vector<uint8_t>((experts + 1) * 4, 0xFF),
            "moe_route: a sum is not -1");
    weights.read("moe_route, topk_weights");
    const std::vector<uint8_t> bytes = ids.read("moe_route, topk_ids");
    for (int64_t i = 0; i < tokens * topk; ++i) {
      int32_t id;
      std::memcpy(&id, bytes.data() + 4 * i, 4);
      require(id >= 0 && id < experts, "moe_route: an id is out of range");
    }
  }
}

void dispatch_and_combine_case(int64_t num_tokens, int64_t hidden, int64_t padding,
                               bool starts_early) {
  const int64_t experts = 9, topk = 3, slots = num_tokens * topk;
  const int64_t rows = padding > 0 ? experts * padding : slots;
  std::vector<int32_t> chosen(slots);
  for (int32_t& id : chosen) id = static_cast<int32_t>(generator() % (experts + 2)) - 1;
  const Tensor x(random_bytes(num_tokens * hidden * 2)), ids(bytes_of(chosen));
  const Tensor permuted(poison(rows * hidden)), scale(poison(rows * 4));
  const Tensor tokens(poison((experts + (padding == 0)) * 4)), row_index(poison(slots * 4));
  run("moe_dispatch",
      MoeDispatchParams{x.as<void>(), ids.as<int32_t>(), permuted.as<uint8_t>(), scale.as<float>(),
                        tokens.as<int32_t>(), row_index.as<int32_t>(), num_tokens, hidden, experts,
                        topk, DataType::kBFloat16, padding, 0},
      launch_moe_dispatch);
  permuted.read("moe_dispatch, permuted");
  scale.read("moe_dispatch, scale");
  tokens.read("moe_dispatch, tokens");
  row_index.read("moe_dispatch, row_index");

  const Tensor y(random_bytes(rows * hidden * 2)), weights(random_bytes(slots * 4));
  const Tensor shared(random_bytes(num_tokens * hidden * 2)), out(poison(num_tokens * hidden * 2));
  run("moe_combine",
      MoeCombineParams{y.as<void>(), weights.as<float>(), row_index.as<int32_t>(), out.as<void>(),
                       num_tokens, rows, hidden, topk, DataType::kBFloat16,
                       starts_early ? nullptr : shared.as<void>(), starts_early},
      launch_moe_combine);
  out.read("moe_combine, out");
}

void moe_dispatch_and_combine() {
  for (const bool starts_early : {false, true}) {
    for (const int64_t padding : {0, 5}) {
      dispatch_and_combine_case(70, 20, padding, starts_early);
      dispatch_and_combine_case(70, 1024, padding, starts_early);
      // Several tokens for each block.
      dispatch_and_combine_case(3000, 64, padding, starts_early);
    }
  }
}

struct GemmFormat {
  WeightFormat weight_format;
  GroupScaleType scale_type;
  int64_t group_size;
  Accumulation accumulation = Accumulation::kDefault;
  DataType out_type = DataType::kBFloat16;

  int64_t scale_bytes(const WeightLayout& layout) const {  // of one expert
    const int64_t out = layout.out_features;
    if (scale_type == GroupScaleType::kNone) return 0;
    if (scale_type == GroupScaleType::kE8M0) return layout.k_blocks() * out * 4;
    const int64_t bytes = scale_type == GroupScaleType::kFloat32 ? 4 : 2;
    return layout.in_features / group_size * out * bytes;
  }
};

void group_gemm_case(const Experts& experts, const WeightLayout& layout, const GemmFormat& format,
                     Activation activation = Activation::kNone, int64_t max_tokens = -1) {
  const int64_t rows = experts.num_rows(), out = layout.out_features, in = layout.in_features;
  const int64_t num_experts = static_cast<int64_t>(experts.counts.size());
  // x ends where mapped memory does. Under the sanitizer, which knows the ends of a Tensor, it is one.
  std::optional<Tensor> tensor;
  std::optional<MemoryEnd> end;
  const std::vector<uint8_t> activations = random_bytes(rows * in);
  const uint8_t* const x = guard_bytes == 0 ? tensor.emplace(activations).as<uint8_t>()
                                            : end.emplace(activations).data();
  const Tensor tokens(bytes_of(experts.entries()));
  const Tensor weight(random_bytes(num_experts * layout.expert_bytes()));
  const Tensor weight_scale(random_bytes(num_experts * out * 4));
  const Tensor group_scale(random_bytes(num_experts * format.scale_bytes(layout)));
  const Tensor x_scale(random_bytes(rows * 4)), bias(random_bytes(num_experts * out * 2));
  const Tensor result(poison(rows * (is_gated(activation) ? out / 2 : out) * 2));
  const bool has_groups = format.scale_type != GroupScaleType::kNone;
  const LaunchCounters* const counters =
      launch_counters(0, nullptr);  // the next ones are the launch's
  GroupGemmParams params{x,
                         weight.as<uint8_t>(),
                         weight_scale.as<float>(),
                         has_groups ? group_scale.as<void>() : nullptr,
                         x_scale.as<float>(),
                         bias.as<void>(),
                         result.as<void>(),
                         experts.layout(tokens),
                         out,
                         in,
                         format.group_size,
                         max_tokens,
                         format.weight_format,
                         format.scale_type,
                         ActivationScaleMode::kPerToken,
                         format.out_type,
                         format.accumulation,
                         activation};
  run("group_gemm", params, launch_group_gemm);
  const std::vector<uint8_t> expected = result.read("group_gemm");
  check_rows("group_gemm", experts, expected);
  const Tensor late_x(activations), late_tokens(bytes_of(experts.entries()));
  const Tensor late_scale(x_scale.read("x_scale"));
  const LateWords of_tokens = {&late_tokens, tokens.as<void>(), num_experts + 1};
  const LateWords of_x = {&late_x, const_cast<uint8_t*>(x), rows * in / 4};
  const LateWords of_scale = {&late_scale, x_scale.as<void>(), rows};
  const auto run_again = [&](Start start, const std::vector<LateWords>& late) {
    const Tensor again(poison(expected.size()));
    params.out = again.as<void>();
    params.start = start;
    run_early("group_gemm", params, launch_group_gemm, late);
    require(again.read("group_gemm, early") == expected,
            "group_gemm: another result of a launch that starts early");
  };
  run_again(Start::kEarly, {of_scale, of_x});  // as behind an activation
  if (experts.padding == 0) {                  // as behind a dispatch
    run_again(Start::kAwaitingTokens, {of_tokens, of_x, of_scale});
  }
  LaunchCounters after[4] = {}, zeros[4] = {};
  require_success(cudaMemcpy(after, counters, sizeof(after), cudaMemcpyDeviceToHost), "counters");
  require(std::memcmp(after, zeros, sizeof(after)) == 0,
          "group_gemm: a launch did not put its counters back");
}

// The same with large tiles, if they fit.
void large_group_gemm_case(const Experts& experts, const WeightLayout& layout,
                           const GemmFormat& format, Activation activation = Activation::kNone) {
  group_gemm_case(experts, layout, format, activation, 4096);
}

void group_gemm() {
  const GemmFormat formats[] = {
      {WeightFormat::kInt4, GroupScaleType::kNone, -1},
      {WeightFormat::kInt4, GroupScaleType::kFloat32, 32},
      {WeightFormat::kInt4, GroupScaleType::kBFloat16, 128},
      {WeightFormat::kMxfp4, GroupScaleType::kE8M0, 32},
      {WeightFormat::kInt4, GroupScaleType::kNone, -1, Accumulation::kFloat32},
      {WeightFormat::kInt4, GroupScaleType::kBFloat16, 128, Accumulation::kFloat32},
      {WeightFormat::kMxfp4, GroupScaleType::kE8M0, 32, Accumulation::kFloat32}};
  const WeightLayout layouts[] = {{72, 128}, {328, 640}, {248, 640}};
  for (const Experts& experts : kExperts) {
    for (const WeightLayout& layout : layouts) {
      for (const GemmFormat& format : formats) group_gemm_case(experts, layout, format);
    }
  }
  // Large tiles, which 248 outputs fill. Then the second block of a cluster has no token of the last one, where x ends.
  for (const int format : {0, 2, 3}) {
    large_group_gemm_case({{300, 280}, 0}, layouts[2], formats[format]);
    large_group_gemm_case({{300, 280, 20}, 0}, layouts[2], formats[format]);
  }
  // Two waves of equal large tiles and 12, with 66 clusters: these are halves, and the second wave is taken.
  for (const int format : {0, 3}) {
    large_group_gemm_case({std::vector<int32_t>(36, 256), 0}, {1024, 640}, formats[format]);
  }
  // Several waves of large tiles of all widths.
  Experts uneven = {{}, 0};
  for (int i = 0; i < 3; ++i) {
    for (const int32_t tokens : {300, 20, 130, 513, 257, 64, 1, 0, 280}) {
      uneven.counts.push_back(tokens);
    }
  }
  for (const int format : {0, 2, 3}) large_group_gemm_case(uneven, {1024, 640}, formats[format]);
  // The same of medium tiles.
  Experts uneven_medium = {{}, 0};
  for (int i = 0; i < 6; ++i) {
    for (const int32_t tokens : {100, 20, 130, 64, 1, 0, 300, 40}) {
      uneven_medium.counts.push_back(tokens);
    }
  }
  for (const int format : {0, 2, 3}) group_gemm_case(uneven_medium, {1024, 640}, formats[format]);
  // 215 of these, some of which are in two parts with 132 multiprocessors, and of one sub-block.
  Experts in_parts = {{100, 90, 80, 70}, 0};
  for (int i = 0; i < 3; ++i) {
    for (const int32_t tokens : {300, 20, 130, 64, 1, 0, 257, 150}) {
      in_parts.counts.push_back(tokens);
    }
  }
  for (const int format : {0, 3}) {
    group_gemm_case(in_parts, {1088, 2080}, formats[format]);
  }
  // 70 large ones of all widths, 39 of them in two parts with 66 clusters; 84, some with a block that has no outputs.
  for (const int format : {0, 3}) {
    large_group_gemm_case({{480, 20, 513, 64, 0, 257, 300, 700}, 0}, {1216, 4640}, formats[format]);
    large_group_gemm_case({{480, 20, 513, 64, 0, 257, 300, 700}, 0}, {1408, 4096}, formats[format]);
    // x ends with a tile of 160 tokens, and of 224, not all of which exist.
    large_group_gemm_case({{200, 140}, 0}, {256, 4096}, formats[format]);
    large_group_gemm_case({{140, 200}, 0}, {256, 4096}, formats[format]);
  }
  // Decode, small and medium tiles of all their sub-blocks: more of them than multiprocessors.
  for (const int32_t tokens : {3, 20, 100}) {
    const Experts many = {std::vector<int32_t>(70, tokens), 0};
    for (const int format : {0, 3}) group_gemm_case(many, layouts[1], formats[format]);
  }
  // Tiles of one sub-block, which all warpgroups multiply, 23 k blocks; and such ones behind tiles of two.
  Experts few = {std::vector<int32_t>(26, 1), 0};
  few.counts[3] = 75;
  for (const int format : {0, 2, 3}) {
    group_gemm_case({{1, 0, 3, 4}, 0}, {248, 2944}, formats[format]);
    group_gemm_case(few, {320, 1152}, formats[format]);
  }
  // Helped tiles that are taken, with 132 multiprocessors: behind 36 tall ones; then, with 33 k blocks, all tiles.
  Experts helped = {{}, 0};
  for (int i = 0; i < 50; ++i) {
    for (const int32_t tokens : {1, 3, 0, 2}) helped.counts.push_back(tokens);
  }
  for (const int format : {0, 2, 3}) {
    group_gemm_case(helped, {328, 1152}, formats[format]);
    group_gemm_case({std::vector<int32_t>(30, 1), 0}, {328, 4224}, formats[format]);
  }
  // Half a k block at the end of all kinds of tiles: 704 are 5 and a half, 4160 are 32 and a half.
  for (const int format : {0, 1, 3}) {
    for (const int32_t tokens : {3, 20, 100, 300}) {
      const Experts many = {std::vector<int32_t>(18, tokens), 0};
      group_gemm_case(many, {328, 704}, formats[format]);
      group_gemm_case(many, {384, 704}, formats[format], Activation::kSwiglu);
    }
    large_group_gemm_case({{300, 280, 20}, 0}, {248, 704},
                          formats[format]);  // 2 k blocks in a stage
    group_gemm_case({std::vector<int32_t>(30, 1), 0}, {328, 4160}, formats[format]);  // helped
  }
  // So many in_features that sums for float16 are carried to shared memory.
  for (const GemmFormat& format : {formats[0], formats[3]}) {
    GemmFormat carried = format;
    carried.out_type = DataType::kFloat16;
    for (const Experts& experts : kExperts) {
      group_gemm_case(experts, {328, 2944}, carried);
      large_group_gemm_case(experts, {248, 2944}, carried);
    }
  }
  // Gates and what they let through, an odd and an even number of pairs of sub-blocks.
  for (const int64_t out : {384, 1024}) {
    for (const Experts& experts : kExperts) {
      for (const GemmFormat& format : formats) {
        group_gemm_case(experts, {out, 640}, format, Activation::kSwiglu);
      }
      group_gemm_case(experts, {out, 640}, formats[2], Activation::kSwigluOai);
    }
  }
  // Large tiles, which these have from 4096 in_features on.
  for (const Experts& experts : kExperts) {
    for (const int format : {0, 2, 3}) {
      large_group_gemm_case(experts, {256, 4096}, formats[format], Activation::kSwiglu);
    }
  }
  large_group_gemm_case({{300, 280, 20}, 0}, {512, 4096}, formats[0], Activation::kSwiglu);
  large_group_gemm_case({{300, 280, 20}, 0}, {640, 4096}, formats[3], Activation::kSwiglu);
  group_gemm_case(kExperts[0], {8, 32}, formats[0]);
  group_gemm_case(kExperts[0], {72, 96}, formats[1]);
}

struct MlaCase {
  MlaUp op;
  DataType type;
  bool is_float8;
  int64_t tokens, out, in;
};

// x is a view of wider rows, as q_nope is of the projected query; `padding`: of a token, behind its
// heads. With it no tensor map can describe the view.
void mla_up_case(const MlaCase& c, int64_t padding) {
  const int64_t heads = 3, x_head = c.in + 64, x_token = heads * x_head + padding;
  const MlaUpLayout layout = {c.op, c.out, c.in};
  std::vector<uint8_t> scale_bytes = random_bytes(heads * layout.head_scale_bytes());
  for (uint8_t& byte : scale_bytes) byte %= kMlaLargestScale + 1;
  // The view ends where the last head's inputs do.
  const int64_t numbers = c.tokens * x_token - padding - 64;
  const Tensor x(random_bytes(numbers * (c.is_float8 ? 1 : 2))), scales(scale_bytes);
  const Tensor x_scale(random_bytes(c.tokens * heads * 4));
  const Tensor codes(random_bytes(heads * layout.head_bytes()));
  const Tensor result(poison(c.tokens * heads * c.out * 2));
  run("mla_up",
      MlaUpParams{x.as<void>(), codes.as<uint8_t>(), scales.as<uint8_t>(), result.as<void>(),
                  x_token, x_head, c.tokens, heads, c.out, c.in, c.op, c.type,
                  c.is_float8 ? x_scale.as<float>() : nullptr},
      launch_mla_up);
  result.read("mla_up");
}

void mla_up() {
  constexpr int64_t kPadding = 16;
  for (const DataType type : {DataType::kBFloat16, DataType::kFloat16}) {
    for (const bool is_float8 : {false, true}) {
      for (const int64_t tokens : {1, 17, 65, 130, 1000}) {
        mla_up_case({MlaUp::kKUp, type, is_float8, tokens, 512, 128}, kPadding);
        mla_up_case({MlaUp::kVUp, type, is_float8, tokens, 128, 512}, kPadding);
      }
      for (const int64_t lora : {256, 768}) {
        for (const int64_t nope : {64, 192}) {
          mla_up_case({MlaUp::kKUp, type, is_float8, 70, lora, nope}, kPadding);
        }
        mla_up_case({MlaUp::kVUp, type, is_float8, 70, 64, lora}, kPadding);
      }
    }
  }
}

// The tiles that tensor copies fetch: of 64 tokens, with 64 outputs and with 128, and of 128.
void mla_up_boxes() {
  for (const DataType type : {DataType::kBFloat16, DataType::kFloat16}) {
    for (const int64_t tokens : {1000, 2500, 3001}) {
      mla_up_case({MlaUp::kVUp, type, false, tokens, 128, 512}, 0);
    }
    for (const int64_t lora : {256, 768}) {
      mla_up_case({MlaUp::kVUp, type, false, 1001, 128, lora}, 0);
    }
  }
}

// Of decode, medium and large tiles, and of kernels that are launched in other ways.
void launches_of_all_kinds() {
  const GemmFormat int4 = {WeightFormat::kInt4, GroupScaleType::kNone, -1};
  for (const int32_t tokens : {3, 100}) {
    group_gemm_case({{tokens, 0, tokens}, 0}, {248, 640}, int4);
  }
  large_group_gemm_case({{300, 0, 300}, 0}, {248, 640}, int4);
  mla_up_case({MlaUp::kVUp, DataType::kBFloat16, false, 17, 128, 512}, 0);
  quant_per_token();
}

// The first launches of the process, if it is asked for these first: kernels are loaded in a capture.
void in_graph() {
  way = Way::kInGraph;
  launches_of_all_kinds();
  way = Way::kPlain;
}

void in_new_thread() {
  launches_of_all_kinds();  // loads them: the new thread has nothing to do with the runtime then
  way = Way::kInNewThread;
  launches_of_all_kinds();
  way = Way::kPlain;
}

int main_of(int argc, char** argv) {
  const std::pair<std::string, std::function<void()>> all[] = {
      {"in_graph", in_graph},
      {"weight_pack", weight_pack},
      {"quant_per_token", quant_per_token},
      {"activation_quant", activation_quant},
      {"moe_route", moe_route},
      {"moe_dispatch", moe_dispatch_and_combine},
      {"group_gemm", group_gemm},
      {"mla_up", mla_up},
      {"mla_up_boxes", mla_up_boxes},
      {"in_new_thread", in_new_thread}};
  std::vector<std::string> wanted;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--exact") {
      guard_bytes = 0;
    } else {
      wanted.push_back(argv[i]);
    }
  }
  for (const auto& [name, function] : all) {
    bool is_wanted = wanted.empty();
    for (const std::string& one : wanted) is_wanted |= one == name;
    if (!is_wanted) continue;
    function();
    std::printf("%s done\n", name.c_str());
  }
  return failed ? 1 : 0;
}

}  // namespace
}  // namespace w4afp8

int main(int argc, char** argv) { return w4afp8::main_of(argc, argv); }
