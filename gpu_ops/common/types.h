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

// Words that every operator shares. Host-safe: needs neither CUDA nor Paddle.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define W4AFP8_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define W4AFP8_HOST_DEVICE inline
#endif

namespace w4afp8 {

// Storage type of activations and outputs.
enum class DataType : int32_t { kBFloat16, kFloat16, kFloat32 };

// Meaning of a 4-bit weight code.
enum class WeightFormat : int32_t {
  kInt4,   // two's complement, -8 .. 7
  kMxfp4,  // E2M1 with one E8M0 scale for every 32 codes along in_features
};

// Storage type of the scales shared by a group of weights along in_features.
enum class GroupScaleType : int32_t {
  kNone,      // one scale per output channel only
  kFloat32,   // int4, [experts, in_features / group_size, out_features]
  kBFloat16,  // as kFloat32, where the checkpoint's scales are bfloat16
  kE8M0,      // mxfp4, [experts, k blocks, out_features, 4], relative to the channel's largest
};

enum class ActivationScaleMode : int32_t {
  kNone,       // folded into the weight scale by the caller
  kPerTensor,  // float32 [1]
  kPerToken,   // float32, one per row of x
};

// What the grouped GEMM sums in; see grouped_gemm/sums.cuh.
enum class Accumulation : int32_t {
  kDefault,  // kHalf for bfloat16 outputs; float16 ones would show its rounding (summation_of)
  kHalf,
  kFloat32,
};

enum class Activation : int32_t {
  kNone,
  kSwiglu,     // silu(gate) * up; gate is the first half of the features
  kSwigluOai,  // gpt-oss: clamp at 7, gate * sigmoid(1.702 * gate) * (up + 1)
  kGelu,       // 0.5 * x * (1 + erf(x / sqrt(2))), no gate
};

W4AFP8_HOST_DEVICE constexpr bool is_gated(Activation activation) {
  return activation == Activation::kSwiglu || activation == Activation::kSwigluOai;
}

enum class RouteScore : int32_t { kSoftmax, kSigmoid };

// Experts of one call, at most: blocks keep a few words for each in shared memory.
constexpr int64_t kMaxExperts = 1024;

W4AFP8_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
W4AFP8_HOST_DEVICE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace w4afp8
