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

#include <vector>

#include "cpu/activate.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/row_quant.h"

namespace w4afp8::cpu {
namespace {

// The orthonormal Walsh-Hadamard transform of every `size` features, a power of two that divides
// them. CUDA has the same additions in the same order.
void hadamard(float* values, int64_t features, int64_t size) {
  for (int64_t step = 1; step < size; step *= 2) {
    for (int64_t first = 0; first < features; first += 2 * step) {
      for (int64_t i = first; i < first + step; ++i) {
        const float lower = values[i], upper = values[i + step];
        values[i] = lower + upper;
        values[i + step] = lower - upper;
      }
    }
  }
  const float factor = 1.0f / std::sqrt(static_cast<float>(size));
  for (int64_t i = 0; i < features; ++i) values[i] *= factor;
}

}  // namespace

void activation_quant(const ActivationQuantParams& params) {
  const int64_t features = params.features;
  const int64_t width = params.in_features();
  // An exponential costs some eight simple steps.
  parallel_for(params.tokens.num_rows, row_grain(8 * width), [&](int64_t begin, int64_t end) {
    std::vector<float> values(width);
    for (int64_t row = begin; row < end; ++row) {
      if (!params.tokens.is_token(row)) continue;
      load_floats(params.in_type, params.h, row * width, width, values.data());
      activate(params.activation, params.in_type, features, values.data());
      if (params.hadamard_block_size > 0) {
        hadamard(values.data(), features, params.hadamard_block_size);
      }
      quantize_row(values.data(), features, params.out + row * features, params.scale + row);
    }
  });
}

}  // namespace w4afp8::cpu
