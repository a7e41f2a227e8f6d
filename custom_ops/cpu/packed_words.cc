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

#include "cpu/packed_words.h"

namespace w4afp8::cpu {
namespace {

std::array<WordPlace, kWordsPerSubBlock> make_word_places() {
  std::array<WordPlace, kWordsPerSubBlock> places{};
  for (int row = 0; row < kSubBlockOut; ++row) {
    for (int k = 0; k < kSubBlockIn; ++k) {
      const CodePlace place = code_place(row, k);
      if (place.half == 0 && place.lane == 0) {
        places[place.word / 4] = {static_cast<int16_t>(row), static_cast<int16_t>(k)};
      }
    }
  }
  return places;
}

uint32_t encode_word(WeightFormat format, uint32_t eight_codes) {
  uint32_t word = 0;
  for (int i = 0; i < 8; ++i) word |= encode_code(format, eight_codes >> 4 * i & 15, i / 4, i % 4);
  return word;
}

uint32_t decode_word(WeightFormat format, uint32_t word) {
  uint32_t eight_codes = 0;
  for (int i = 0; i < 8; ++i) eight_codes |= decode_code(format, word, i / 4, i % 4) << 4 * i;
  return eight_codes;
}

}  // namespace

const std::array<WordPlace, kWordsPerSubBlock>& word_places() {
  static const std::array<WordPlace, kWordsPerSubBlock> places = make_word_places();
  return places;
}

WordCodec::WordCodec(WeightFormat format) {
  for (int byte = 0; byte < 4; ++byte) {
    for (uint32_t value = 0; value < 256; ++value) {
      encode_[byte][value] = encode_word(format, value << 8 * byte);
      decode_[byte][value] = decode_word(format, value << 8 * byte);
    }
  }
}

}  // namespace w4afp8::cpu
