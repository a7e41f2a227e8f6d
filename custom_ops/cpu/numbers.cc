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

#include "cpu/numbers.h"

#include <array>
#include <limits>

namespace w4afp8::cpu {
namespace {

std::array<float, 256> make_float8_values() {
  std::array<float, 256> values;
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                    : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
    if ((code & 0x7F) == 0x7F) magnitude = std::numeric_limits<float>::quiet_NaN();
    values[code] = code & 0x80 ? -magnitude : magnitude;
  }
  return values;
}

}  // namespace

const float* float8_values() {
  static const std::array<float, 256> values = make_float8_values();
  return values.data();
}

void load_floats(DataType type, const void* source, int64_t offset, int64_t count, float* out) {
  if (type == DataType::kFloat32) {
    std::memcpy(out, static_cast<const float*>(source) + offset, count * sizeof(float));
    return;
  }
  const uint16_t* bits = static_cast<const uint16_t*>(source) + offset;
  if (type == DataType::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) out[i] = bfloat16_to_float(bits[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = float16_to_float(bits[i]);
  }
}

void round_floats(DataType type, float* values, int64_t count) {
  if (type == DataType::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) values[i] = bfloat16_to_float(float_to_bfloat16(values[i]));
  } else if (type == DataType::kFloat16) {
    for (int64_t i = 0; i < count; ++i) values[i] = float16_to_float(float_to_float16(values[i]));
  }
}

void store_floats(DataType type, const float* values, int64_t count, void* out, int64_t offset) {
  if (type == DataType::kFloat32) {
    std::memcpy(static_cast<float*>(out) + offset, values, count * sizeof(float));
    return;
  }
  uint16_t* bits = static_cast<uint16_t*>(out) + offset;
  if (type == DataType::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) bits[i] = float_to_bfloat16(values[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) bits[i] = float_to_float16(values[i]);
  }
}

}  // namespace w4afp8::cpu
