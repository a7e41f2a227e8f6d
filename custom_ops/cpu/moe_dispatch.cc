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
#include <cstring>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/row_quant.h"

namespace w4afp8::cpu {
namespace {

// Fills `tokens` and `row_index`: a counting sort by expert that keeps the order of tokens and slots.
void sort_slots(const MoeDispatchParams& params) {
  const int64_t slots = params.num_tokens * params.topk, padding = params.token_padding;
  std::vector<int64_t> counts(params.experts), next(params.experts);
  for (int64_t i = 0; i < slots; ++i) {
    const int32_t expert = params.local_expert(params.topk_ids[i]);
    if (expert >= 0) ++counts[expert];
  }
  int64_t sum = 0;
  for (int64_t e = 0; e < params.experts; ++e) {
    next[e] = padding > 0 ? e * padding : sum;
    params.tokens[e] = static_cast<int32_t>(padding > 0 ? std::min(counts[e], padding) : sum);
    sum += counts[e];
  }
  if (padding == 0) params.tokens[params.experts] = static_cast<int32_t>(sum);
  for (int64_t i = 0; i < slots; ++i) {
    const int32_t expert = params.local_expert(params.topk_ids[i]);
    const bool fits = expert >= 0 && (padding == 0 || next[expert] < (expert + 1) * padding);
    params.row_index[i] = fits ? static_cast<int32_t>(next[expert]++) : -1;
  }
}

// Quantises one token and copies it to every row that its slots went to.
void copy_token(const MoeDispatchParams& params, int64_t token, float* values, uint8_t* quantized) {
  const int64_t hidden = params.hidden;
  float scale;
  load_floats(params.in_type, params.x, token * hidden, hidden, values);
  quantize_row(values, hidden, quantized, &scale);
  for (int64_t slot = 0; slot < params.topk; ++slot) {
    const int64_t row = params.row_index[token * params.topk + slot];
    if (row < 0) continue;
    std::memcpy(params.permuted + row * hidden, quantized, hidden);
    params.scale[row] = scale;
  }
}

}  // namespace

void moe_dispatch(const MoeDispatchParams& params) {
  sort_slots(params);
  parallel_for(params.num_tokens, row_grain(params.hidden), [&](int64_t begin, int64_t end) {
    std::vector<float> values(params.hidden);
    std::vector<uint8_t> quantized(params.hidden);
    for (int64_t token = begin; token < end; ++token) {
      copy_token(params, token, values.data(), quantized.data());
    }
  });
}

}  // namespace w4afp8::cpu
