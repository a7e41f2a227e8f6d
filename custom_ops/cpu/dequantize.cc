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

#include "cpu/dequantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/numbers.h"

namespace w4afp8::cpu {
namespace {

float code_value(WeightFormat format, int code) {
  static const float kE2m1[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  if (format == WeightFormat::kInt4) return static_cast<float>(code < 8 ? code : code - 16);
  return code & 8 ? -kE2m1[code & 7] : kE2m1[code & 7];
}

}  // namespace

Dequantizer::Dequantizer(const GroupGemmParams& params)
    : params_(params), codec_(params.weight_format) {
  for (int byte = 0; byte < 256; ++byte) {
    pair_values_[byte][0] = code_value(params.weight_format, byte & 15);
    pair_values_[byte][1] = code_value(params.weight_format, byte >> 4);
    e8m0_values_[byte] = std::ldexp(1.0f, byte - 254);
  }
}

void Dequantizer::run(int64_t expert, int64_t sub_begin, int64_t sub_end, float* out) const {
  const WeightLayout layout = params_.weight_layout();
  const uint8_t* weight = params_.weight + expert * layout.expert_bytes();
  BlockScales scales;
  // Words go back and forth between the rows of a sub-block. In `out`, whose rows are often a power
  // of two apart, all of them would fall into the same few sets of the cache.
  alignas(64) Tile tile;
  for (int64_t sub = sub_begin; sub < sub_end; ++sub) {
    float* rows = out + (sub - sub_begin) * kSubBlockOut * params_.in_features;
    for (int64_t block = 0; block < layout.k_blocks(); ++block) {
      const int64_t k = block * kSubBlockIn;
      load_scales(expert, sub, block, &scales);
      run_block(weight + layout.sub_block_offset(sub, block), layout.sub_block_bytes(block), scales,
                tile);
      const int64_t columns = std::min(kSubBlockIn, params_.in_features - k);
      for (int64_t row = 0; row < kSubBlockOut; ++row) {
        std::memcpy(rows + row * params_.in_features + k, tile[row], columns * sizeof(float));
      }
    }
  }
}

void Dequantizer::load_scales(int64_t expert, int64_t sub, int64_t k_block,
                              BlockScales* scales) const {
  for (int64_t row = 0; row < kSubBlockOut; ++row) {
    const int64_t out = sub * kSubBlockOut + row;
    for (int64_t step = 0; step < kSubBlockIn / 32; ++step) {
      const int64_t k = k_block * kSubBlockIn + step * 32;
      const bool padding = out >= params_.out_features || k >= params_.in_features;
      scales->values[row][step] = padding ? 0.0f : group_scale(expert, out, k);
    }
  }
}

float Dequantizer::group_scale(int64_t expert, int64_t out, int64_t k) const {
  const int64_t out_features = params_.out_features;
  if (params_.group_scale_type == GroupScaleType::kE8M0) {
    const int64_t k_blocks = params_.weight_layout().k_blocks();
    const int64_t word = (expert * k_blocks + k / kSubBlockIn) * out_features + out;
    const int byte = static_cast<const uint8_t*>(params_.group_scale)[word * 4 + k / 32 % 4];
    return e8m0_values_[byte];
  }
  if (params_.group_scale_type == GroupScaleType::kNone) return 1.0f;
  const int64_t groups = params_.in_features / params_.group_size;
  const int64_t index = (expert * groups + k / params_.group_size) * out_features + out;
  return params_.group_scale_type == GroupScaleType::kFloat32
             ? static_cast<const float*>(params_.group_scale)[index]
             : bfloat16_to_float(static_cast<const uint16_t*>(params_.group_scale)[index]);
}

void Dequantizer::run_block(const uint8_t* block, int64_t bytes, const BlockScales& scales,
                            Tile& tile) const {
  const auto& places = word_places();
  for (int i = 0; i < bytes / kWordBytes; ++i) {
    const int row = places[i].row, k = places[i].k;
    uint32_t word;
    std::memcpy(&word, block + kWordBytes * i, sizeof(word));
    uint32_t codes = codec_.decode(word);
    for (int half = 0; half < 2; ++half, codes >>= 16) {
      const int here = row + 8 * half;
      const float scale = scales.values[here][k / 32];
      float* four = tile[here] + k;
      std::memcpy(four, pair_values_[codes & 255], 2 * sizeof(float));
      std::memcpy(four + 2, pair_values_[codes >> 8 & 255], 2 * sizeof(float));
      for (int lane = 0; lane < 4; ++lane) four[lane] *= scale;
    }
  }
}

}  // namespace w4afp8::cpu
