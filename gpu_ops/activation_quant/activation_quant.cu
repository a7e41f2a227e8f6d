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

#include <algorithm>

#include "activation_quant/kernel.cuh"
#include "activation_quant/launch.h"
#include "common/device.h"
#include "common/launch_kernel.cuh"

namespace w4afp8 {
namespace {

// Chunks of a row for each thread: all that it can hold, or one, so that few rows take less time.
int chunks_each(const ActivationQuantParams& params, int held) {
  constexpr int64_t kFewRows = 1024;
  return params.tokens.num_rows > kFewRows ? held : 1;
}

// Threads for each multiprocessor: those that can run at once, and some more to even out.
constexpr int64_t kThreadsEach = 2048;

bool has_hadamard(const ActivationQuantParams& params) { return params.hadamard_block_size > 0; }

template <int kWidth>
cudaError_t launch_quant(const QuantPerTokenParams& params, cudaStream_t stream) {
  auto kernel = quant_per_token_kernel<kWidth, float>;
  if (params.in_type == DataType::kBFloat16) kernel = quant_per_token_kernel<kWidth, __nv_bfloat16>;
  if (params.in_type == DataType::kFloat16) kernel = quant_per_token_kernel<kWidth, __half>;
  return launch_dependent_kernel(kernel, params.num_rows, row_threads(params.features, kWidth),
                                 stream, params);
}

template <int kWidth, typename T, bool kHadamard, Activation kActivation>
cudaError_t launch_one(const ActivationQuantParams& params, cudaStream_t stream) {
  constexpr auto kKernel = activation_quant_kernel<kWidth, T, kActivation, kHadamard>;
  const int64_t size = params.hadamard_block_size;
  const int threads =
      kHadamard ? hadamard_threads(params.features, size, chunks_each(params, kHeldChunks))
                : row_threads(params.features, kWidth, chunks_each(params, kHeldActivated));
  const int64_t blocks = std::min(params.tokens.num_rows, kThreadsEach / threads * sm_count());
  if (blocks > 0) prefer_shared_memory<kKernel>();
  return launch_dependent_kernel_with_memory(
      kKernel, blocks, threads, kHadamard ? hadamard_bytes(size, threads) : 0, stream, params);
}

template <int kWidth, typename T, bool kHadamard>
cudaError_t launch_activation(const ActivationQuantParams& params, cudaStream_t stream) {
  switch (params.activation) {
    case Activation::kNone:
      return launch_one<kWidth, T, kHadamard, Activation::kNone>(params, stream);
    case Activation::kSwiglu:
      return launch_one<kWidth, T, kHadamard, Activation::kSwiglu>(params, stream);
    case Activation::kSwigluOai:
      return launch_one<kWidth, T, kHadamard, Activation::kSwigluOai>(params, stream);
    case Activation::kGelu:
      return launch_one<kWidth, T, kHadamard, Activation::kGelu>(params, stream);
  }
  return cudaErrorInvalidValue;
}

template <int kWidth, bool kHadamard>
cudaError_t launch_activation(const ActivationQuantParams& params, cudaStream_t stream) {
  return params.in_type == DataType::kBFloat16
             ? launch_activation<kWidth, __nv_bfloat16, kHadamard>(params, stream)
             : launch_activation<kWidth, __half, kHadamard>(params, stream);
}

}  // namespace

const char* check(const QuantPerTokenParams& params) {
  if (const char* reason = check_device()) return reason;
  return params.num_rows > kMaxGrid ? "x has more than 2^31 - 1 rows" : nullptr;
}

const char* check(const ActivationQuantParams& params) {
  if (const char* reason = check_device()) return reason;
  if (has_hadamard(params)) {
    if (params.features > kMaxHadamardFeatures) {
      return "hadamard_block_size: expected at most 16384 output features, got more";
    }
    if (!rows_are_vectors(params.features, params.h, params.out)) {
      return "hadamard_block_size: expected h aligned to 16 bytes, got another address";
    }
  }
  return params.tokens.num_rows > kMaxGrid ? "h has more than 2^31 - 1 rows" : nullptr;
}

cudaError_t launch_quant_per_token(const QuantPerTokenParams& params, cudaStream_t stream) {
  const bool vectors = rows_are_vectors(params.features, params.x, params.out);
  return vectors ? launch_quant<kVectorWidth>(params, stream) : launch_quant<1>(params, stream);
}

cudaError_t launch_activation_quant(const ActivationQuantParams& params, cudaStream_t stream) {
  if (has_hadamard(params)) return launch_activation<kHadamardWidth, true>(params, stream);
  const bool vectors = rows_are_vectors(params.features, params.h, params.out);
  return vectors ? launch_activation<kVectorWidth, false>(params, stream)
                 : launch_activation<1, false>(params, stream);
}

}  // namespace w4afp8
