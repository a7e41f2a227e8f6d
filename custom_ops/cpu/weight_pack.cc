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

#include "cpu/kernels.h"
#include "cpu/packed_words.h"
#include "cpu/parallel.h"

namespace w4afp8::cpu {
namespace {

// One piece of work: a sub-block row, 64 outputs of one expert over all of in_features.
struct SubRow {
  const WeightPackParams& params;
  const WeightLayout layout;
  const int64_t sub;
  uint8_t* codes;           // of the expert
  uint8_t* packed;          // of the expert
  const int64_t rows_left;  // outputs of this sub-block that are no padding

  SubRow(const WeightPackParams& p, int64_t index)
      : params(p),
        layout(p.weight_layout()),
        sub(index % subs(p)),
        codes(p.codes + index / subs(p) * p.out_features * (p.in_features / 2)),
        packed(p.packed + index / subs(p) * layout.expert_bytes()),
        rows_left(p.out_features - sub * kSubBlockOut) {}

  static int64_t subs(const WeightPackParams& p) {
    return p.weight_layout().padded_out() / kSubBlockOut;
  }

  // The two bytes that hold four neighbours, or nullptr in the padding.
  uint8_t* four_codes(int64_t row, int64_t k) const {
    if (row >= rows_left || k >= params.in_features) return nullptr;
    return codes + (sub * kSubBlockOut + row) * (params.in_features / 2) + k / 2;
  }

  uint8_t* block(int64_t k_block) const { return packed + layout.sub_block_offset(sub, k_block); }
  // Of a sub-block of this k block.
  int words(int64_t k_block) const {
    return static_cast<int>(layout.sub_block_bytes(k_block) / kWordBytes);
  }
};

uint32_t read_codes(const uint8_t* bytes) {
  return bytes == nullptr ? 0 : bytes[0] | uint32_t{bytes[1]} << 8;
}

void write_codes(uint8_t* bytes, uint32_t codes) {
  if (bytes == nullptr) return;
  bytes[0] = static_cast<uint8_t>(codes);
  bytes[1] = static_cast<uint8_t>(codes >> 8);
}

void pack_sub_row(const SubRow& work, const WordCodec& codec) {
  const auto& places = word_places();
  for (int64_t k_block = 0; k_block < work.layout.k_blocks(); ++k_block) {
    uint8_t* block = work.block(k_block);
    for (int i = 0; i < work.words(k_block); ++i) {
      const int64_t row = places[i].row, k = k_block * kSubBlockIn + places[i].k;
      const uint32_t low = read_codes(work.four_codes(row, k));
      const uint32_t high = read_codes(work.four_codes(row + 8, k));
      const uint32_t word = codec.encode(low | high << 16);
      std::memcpy(block + kWordBytes * i, &word, sizeof(word));
    }
  }
}

void unpack_sub_row(const SubRow& work, const WordCodec& codec) {
  const auto& places = word_places();
  for (int64_t k_block = 0; k_block < work.layout.k_blocks(); ++k_block) {
    const uint8_t* block = work.block(k_block);
    for (int i = 0; i < work.words(k_block); ++i) {
      uint32_t word;
      std::memcpy(&word, block + kWordBytes * i, sizeof(word));
      const uint32_t eight_codes = codec.decode(word);
      const int64_t row = places[i].row, k = k_block * kSubBlockIn + places[i].k;
      write_codes(work.four_codes(row, k), eight_codes & 0xFFFF);
      write_codes(work.four_codes(row + 8, k), eight_codes >> 16);
    }
  }
}

template <typename Function>
void for_each_sub_row(const WeightPackParams& params, Function function) {
  const WordCodec codec(params.format);
  const int64_t count = params.experts * SubRow::subs(params);
  const int64_t grain = row_grain(kSubBlockOut * params.in_features);
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) function(SubRow(params, i), codec);
  });
}

}  // namespace

void pack_weight(const WeightPackParams& params) { for_each_sub_row(params, pack_sub_row); }

void unpack_weight(const WeightPackParams& params) { for_each_sub_row(params, unpack_sub_row); }

}  // namespace w4afp8::cpu
