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

#include <type_traits>

#include "activation_quant/activation.cuh"
#include "activation_quant/hadamard.cuh"
#include "activation_quant/params.h"
#include "activation_quant/token_rows.cuh"
#include "common/grid_dependency.cuh"
#include "common/row_quant.cuh"

namespace w4afp8 {

template <int kWidth, typename T>
__global__ void __launch_bounds__(kMaxRowThreads, 1) quant_per_token_kernel(QuantPerTokenParams p) {
  __shared__ RowStorage storage;
  launch_dependents();
  wait_for_previous_grids();
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.x) + row * p.features;
  uint8_t* out = p.out + row * p.features;
  const auto load = [&](int64_t i) { return load_chunk<kWidth>(x + i); };
  const float scale = RowQuantiser<kWidth>(storage).run(
      hold_row<kWidth>(p.features, load), p.features, load,
      [&](int64_t i, auto bytes) { store_fp8<kWidth>(out + i, bytes); });
  if (threadIdx.x == 0) p.scale[row] = scale;
}

// kHadamard: the threads hold the whole row.
template <int kWidth, typename T, Activation kActivation, bool kHadamard>
__global__ void __launch_bounds__(kMaxRowThreads, 1)
    activation_quant_kernel(const __grid_constant__ ActivationQuantParams p) {
  __shared__ RowStorage storage;
  __shared__ int32_t row_sums[kMaxExperts];
  __shared__ typename std::conditional<kHadamard, HadamardStorage, char>::type hadamard_storage;
  launch_dependents();
  wait_for_previous_grids();

  constexpr int kHalves = kActivation == Activation::kGelu ? 1 : 2;
  const TokenRows rows(p.tokens, row_sums);
  RowQuantiser<kWidth> quantiser(storage);
  for (int64_t number = blockIdx.x; number < rows.count(); number += gridDim.x) {
    const int64_t row = rows.row(number);
    if (row < 0) continue;
    const T* h = static_cast<const T*>(p.h) + row * p.features * kHalves;
    uint8_t* out = p.out + row * p.features;
    const auto load = [&](int64_t i) {
      return load_activated<kWidth, kActivation>(h, p.features, i);
    };
    HeldRow<kWidth> held = hold_row<kWidth>(p.features, load);
    if constexpr (kHadamard) {
      Hadamard(hadamard_storage, p.hadamard_block_size).run(held, p.features);
    }
    const float scale = quantiser.run(
        held, p.features, load, [&](int64_t i, auto bytes) { store_fp8<kWidth>(out + i, bytes); });
    if (threadIdx.x == 0) p.scale[row] = scale;
  }
}

}  // namespace w4afp8
