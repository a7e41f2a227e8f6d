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

// Division by a number that is known long before its dividends. Host-safe.
#pragma once

#include "common/types.h"

namespace w4afp8 {

// Of 0 .. 2^31 - 1 by 1 .. 2^31 - 1: a product and a shift. With l = ceil(log2(value)) and
// factor = 2^(31 + l) / value, rounded up, n * factor / 2^(31 + l) is too large by
// n / 2^31 * (value / 2^l) / value at most, less than 1 / value: too little to reach the next quotient.
struct Divisor {
  int32_t value;
  uint32_t factor;
  int32_t log;  // l

  W4AFP8_HOST_DEVICE static Divisor of(int32_t value) {
    int log = 0;
    while (int64_t{1} << log < value) ++log;
    const uint64_t power = uint64_t{1} << (31 + log);
    return {value, static_cast<uint32_t>((power + value - 1) / value), log};
  }

  W4AFP8_HOST_DEVICE int32_t quotient(int32_t n) const {
    const uint64_t product = uint64_t{2 * static_cast<uint32_t>(n)} * factor;
    return static_cast<int32_t>(static_cast<uint32_t>(product >> 32) >> log);
  }
  W4AFP8_HOST_DEVICE int32_t remainder(int32_t n) const { return n - quotient(n) * value; }
  // Of n up to 2^31 - value.
  W4AFP8_HOST_DEVICE int32_t quotient_rounded_up(int32_t n) const {
    return quotient(n + value - 1);
  }
};

}  // namespace w4afp8
