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

// One row of float32 to FP8 with one scale: the rule of activation_quant/params.h, in one place.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/numbers.h"

namespace w4afp8::cpu {

constexpr float kFloat8Max = 448.0f;

// NaN does not count for the scale. With an infinity the scale is infinite and its inverse 0, so
// that the infinity becomes NaN and every other number of the row 0.
inline float row_scale(const float* row, int64_t features) {
  float absmax = 0.0f;
  for (int64_t i = 0; i < features; ++i) {
    const float magnitude = std::fabs(row[i]);
    absmax = magnitude > absmax ? magnitude : absmax;
  }
  return std::max(absmax / kFloat8Max, std::numeric_limits<float>::min());
}

inline void quantize_row(const float* row, int64_t features, uint8_t* out, float* scale) {
  *scale = row_scale(row, features);
  const float inverse = 1.0f / *scale;
  for (int64_t i = 0; i < features; ++i) out[i] = float_to_float8(row[i] * inverse);
}

}  // namespace w4afp8::cpu
