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
#include <vector>

#include "cpu/kernels.h"
#include "cpu/numbers.h"
#include "cpu/parallel.h"

namespace w4afp8::cpu {
namespace {

void combine_token(const MoeCombineParams& params, int64_t token, float* sum, float* values) {
  const int64_t hidden = params.hidden;
  std::fill(sum, sum + hidden, 0.0f);
  for (int64_t slot = 0; slot < params.topk; ++slot) {
    const int64_t row = params.row_index[token * params.topk + slot];
    if (row < 0 || row >= params.num_rows) continue;
    const float weight = params.topk_weights[token * params.topk + slot];
    load_floats(params.type, params.y, row * hidden, hidden, values);
    for (int64_t i = 0; i < hidden; ++i) sum[i] += weight * values[i];
  }
  if (params.shared_output != nullptr) {
    load_floats(params.type, params.shared_output, token * hidden, hidden, values);
    for (int64_t i = 0; i < hidden; ++i) sum[i] += values[i];
  }
  store_floats(params.type, sum, hidden, params.out, token * hidden);
}

}  // namespace

void moe_combine(const MoeCombineParams& params) {
  const int64_t grain = row_grain(params.hidden * params.topk);
  parallel_for(params.num_tokens, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(params.hidden), values(params.hidden);
    for (int64_t token = begin; token < end; ++token) {
      combine_token(params, token, sum.data(), values.data());
    }
  });
}

}  // namespace w4afp8::cpu
