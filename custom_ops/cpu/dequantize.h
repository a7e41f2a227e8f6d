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

// Packed weights back to float32.
#pragma once

#include "cpu/packed_words.h"
#include "grouped_gemm/params.h"

namespace w4afp8::cpu {

class Dequantizer {
 public:
  explicit Dequantizer(const GroupGemmParams& params);

  // code * group scale of outputs [64 * sub_begin, 64 * sub_end) of `expert`, without the weight
  // scale, to out [64 * (sub_end - sub_begin), in_features]. Padding outputs come out as zero.
  void run(int64_t expert, int64_t sub_begin, int64_t sub_end, float* out) const;

 private:
  using Tile = float[kSubBlockOut][kSubBlockIn];

  // Scale of each row of a sub-block and each 32 in_features of a k block.
  struct BlockScales {
    float values[kSubBlockOut][kSubBlockIn / 32];
  };

  void load_scales(int64_t expert, int64_t sub, int64_t k_block, BlockScales* scales) const;
  float group_scale(int64_t expert, int64_t out, int64_t k) const;
  void run_block(const uint8_t* block, int64_t bytes, const BlockScales& scales, Tile& tile) const;

  const GroupGemmParams& params_;
  const WordCodec codec_;
  float pair_values_[256][2];  // of a byte with two codes, low nibble first
  float e8m0_values_[256];     // of a scale relative to the channel's largest
};

}  // namespace w4afp8::cpu
