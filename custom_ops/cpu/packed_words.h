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

// Tables made once from common/weight_layout.h, so that the loops over a packed weight look up a
// whole word instead of computing the place of each code.
//
// "Eight codes" below is a uint32: the low half word holds four neighbours along k of output row g
// as the checkpoint spells them (low nibble first), the high half word the same of row g + 8.
#pragma once

#include <array>
#include <cstdint>

#include "common/weight_layout.h"

namespace w4afp8::cpu {

constexpr int kWordBytes = sizeof(uint32_t);
constexpr int kWordsPerSubBlock = kSubBlockBytes / kWordBytes;

struct WordPlace {
  int16_t row;  // of half 0; half 1 is row + 8
  int16_t k;    // of lane 0
};

// Place of each word of a sub-block.
const std::array<WordPlace, kWordsPerSubBlock>& word_places();

class WordCodec {
 public:
  explicit WordCodec(WeightFormat format);

  uint32_t encode(uint32_t eight_codes) const { return translate(encode_, eight_codes); }
  uint32_t decode(uint32_t word) const { return translate(decode_, word); }

 private:
  // [byte][its value]: what that byte alone contributes.
  using Table = std::array<std::array<uint32_t, 256>, 4>;

  // Both formats place every code by itself and spell code 0 as zero bits, so a word is the union
  // of what its bytes contribute.
  static uint32_t translate(const Table& table, uint32_t v) {
    return table[0][v & 255] | table[1][v >> 8 & 255] | table[2][v >> 16 & 255] | table[3][v >> 24];
  }

  Table encode_;
  Table decode_;
};

}  // namespace w4afp8::cpu
