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

// Thread blocks quantise rows, one after the other.
#pragma once

#include "activation_quant/activation.cuh"
#include "activation_quant/hadamard.cuh"
#include "activation_quant/params.h"
#include "activation_quant/token_rows.cuh"
#include "common/grid_dependency.cuh"
#include "common/row_quant.cuh"
#include "ptx/discard.cuh"

namespace w4afp8 {

template <int kWidth, typename T>
__global__ void __launch_bounds__(kMaxRowThreads, 1) quant_per_token_kernel(QuantPerTokenParams p) {
  __shared__ RowStorage storage;
  wait_for_previous_grids();
  launch_dependents();
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.x) + row * p.features;
  uint8_t* out = p.out + row * p.features;
  const auto load = [&](int64_t i) { return load_chunk<kWidth>(x + i); };
  const float scale = RowQuantiser<kWidth>(storage).run(
      hold_row<kWidth, kHeldChunks>(p.features, load), p.features, load,
      [&](int64_t i, auto bytes) { store_fp8<kWidth>(out + i, bytes); });
  if (threadIdx.x == 0) p.scale[row] = scale;
}

// Of an activated row: with 4 a thread has twice the registers, and a multiprocessor half the rows
// at once (DeepSeek-V3's layer of 512 tokens took 1.3 us more on an H100).
constexpr int kHeldActivated = 2;

// By all threads of a block, which have read the row: it need not be written to memory where it still is in L2.
__device__ __forceinline__ void discard_row(const void* row, int64_t bytes) {
  if (reinterpret_cast<uintptr_t>(row) % ptx::kLineBytes != 0 || bytes % ptx::kLineBytes != 0)
    return;
  __syncthreads();
  for (int64_t i = threadIdx.x * ptx::kLineBytes; i < bytes; i += blockDim.x * ptx::kLineBytes) {
    ptx::discard_line(static_cast<const uint8_t*>(row) + i);
  }
}

// kHadamard: the threads hold the whole row.
template <int kWidth, typename T, Activation kActivation, bool kHadamard>
__global__ void __launch_bounds__(kMaxRowThreads, 1)
    activation_quant_kernel(const __grid_constant__ ActivationQuantParams p) {
  __shared__ RowStorage storage;
  __shared__ int32_t row_sums[kMaxExperts];
  extern __shared__ float4 hadamard_exchange[];  // hadamard_bytes
  if (!p.starts_early) wait_for_previous_grids();
  launch_large_dependents();  // the second product

  constexpr int kHeld = kHadamard ? kHeldChunks : kHeldActivated;
  constexpr int kHalves = is_gated(kActivation) ? 2 : 1;
  const TokenRows rows(p.tokens, row_sums);
  if (p.starts_early) wait_for_previous_grids();
  RowQuantiser<kWidth> quantiser(storage);
  for (int64_t number = blockIdx.x; number < rows.count(); number += gridDim.x) {
    const int64_t row = rows.row(number);
    if (row < 0) continue;
    const T* h = static_cast<const T*>(p.h) + row * p.features * kHalves;
    uint8_t* out = p.out + row * p.features;
    const auto load = [&](int64_t i) {
      return load_activated<kWidth, kActivation>(h, p.features, i);
    };
    HeldRow<kWidth, kHeld> held = hold_row<kWidth, kHeld>(p.features, load);
    if constexpr (kHadamard) {
      Hadamard(hadamard_exchange, p.hadamard_block_size).run(held, p.features);
    }
    const float scale = quantiser.run(
        held, p.features, load, [&](int64_t i, auto bytes) { store_fp8<kWidth>(out + i, bytes); });
    if (threadIdx.x == 0) p.scale[row] = scale;
    if (p.consumes_h) discard_row(h, p.features * kHalves * sizeof(T));
  }
}

}  // namespace w4afp8
