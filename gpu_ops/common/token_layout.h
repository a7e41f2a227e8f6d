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

// Which rows of the activations belong to which expert. Read where the counts live (on the device
// for CUDA): nothing is copied to the host. Corrupt counts are clamped, so that no row outside
// [0, num_rows) is ever named.
#pragma once

#include <algorithm>

#include "common/types.h"

namespace w4afp8 {

struct RowRange {
  int64_t begin;
  int64_t end;
};

// Of fewer than 2^31 rows.
struct ShortRows {
  int32_t begin, count;
};

struct TokenLayout {
  const void* tokens;  // int32 or int64; see `padding` and `leading_zero` for its length
  bool is_int64;
  bool leading_zero;  // prefix mode: [experts + 1] with a leading 0, else [experts] inclusive
  int64_t padding;    // 0: prefix sums; P > 0: counts [experts] over activations [experts, P, ...]
  int64_t num_rows;   // rows of the activations: num_tokens, or experts * padding
  int64_t experts;

  // Tokens that an expert probably has, on average: the caller's hint (-1: none), else an even split (prefix mode) or few
  // (padded mode: a buffer is as long as it may ever have to be). Only speed depends on it.
  int64_t expected_tokens(int64_t max_tokens) const {
    if (max_tokens >= 0) return max_tokens;
    if (padding > 0) return std::min<int64_t>(padding, 128);
    return ceil_div(num_rows, std::max<int64_t>(experts, 1));
  }
  // Rows that probably hold tokens.
  int64_t expected_rows(int64_t max_tokens) const {
    return std::min(std::min(expected_tokens(max_tokens), num_rows) * experts, num_rows);
  }

  W4AFP8_HOST_DEVICE int64_t entry(int64_t i) const {
    return is_int64 ? static_cast<const int64_t*>(tokens)[i]
                    : static_cast<int64_t>(static_cast<const int32_t*>(tokens)[i]);
  }

  // Rows of `expert`, empty where the counts make no sense.
  W4AFP8_HOST_DEVICE RowRange rows_of(int64_t expert) const {
    if (padding > 0) {
      const int64_t begin = expert * padding;
      return {begin, begin + clamp(entry(expert), 0, padding)};
    }
    const int64_t before = leading_zero ? entry(expert) : (expert == 0 ? 0 : entry(expert - 1));
    const int64_t begin = clamp(before, 0, num_rows);
    return {begin, clamp(entry(leading_zero ? expert + 1 : expert), begin, num_rows)};
  }

  // The same rows in 32 bits, where num_rows is less than 2^31: the kernels that plan tiles have no time for
  // the dozens of instructions of the above.
  W4AFP8_HOST_DEVICE ShortRows short_rows_of(int32_t expert) const {
    if (padding > 0) {
      const int32_t rows = static_cast<int32_t>(padding);
      return {expert * rows, entry_within(expert, rows)};
    }
    const int32_t rows = static_cast<int32_t>(num_rows), place = expert + (leading_zero ? 1 : 0);
    const int32_t begin = place == 0 ? 0 : entry_within(place - 1, rows);
    const int32_t end = entry_within(place, rows);
    return {begin, end > begin ? end - begin : 0};
  }

  // True where `row` holds a token. In prefix mode the tokens are the rows before the last sum.
  W4AFP8_HOST_DEVICE bool is_token(int64_t row) const {
    if (padding > 0) return row % padding < entry(row / padding);
    return row < entry(leading_zero ? experts : experts - 1);
  }

 private:
  // entry(i), held within 0 .. most.
  W4AFP8_HOST_DEVICE int32_t entry_within(int32_t i, int32_t most) const {
    if (is_int64)
      return static_cast<int32_t>(clamp(static_cast<const int64_t*>(tokens)[i], 0, most));
    const int32_t entry = static_cast<const int32_t*>(tokens)[i];
    return entry < 0 ? 0 : (entry > most ? most : entry);
  }
  W4AFP8_HOST_DEVICE static int64_t clamp(int64_t v, int64_t lo, int64_t hi) {
    return v < lo ? lo : (v > hi ? hi : v);
  }
};

}  // namespace w4afp8
