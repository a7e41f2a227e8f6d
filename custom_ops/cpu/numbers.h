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

// Storage types on the host: bfloat16, float16 and float8_e4m3fn to float32 and back, rounding to
// nearest even. Branch-free, so that the loops over them vectorise.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/types.h"

namespace w4afp8::cpu {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float bfloat16_to_float(uint16_t bits) { return float_of(uint32_t{bits} << 16); }

inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  const uint32_t quiet_nan = bits >> 16 | 0x40;
  return static_cast<uint16_t>(value == value ? rounded : quiet_nan);
}

inline float float16_to_float(uint16_t half) {
  const uint32_t sign = uint32_t{half} << 16 & 0x80000000u;
  const uint32_t magnitude = half & 0x7FFFu;
  // Shifted into place the exponent is biased by 15 instead of 127; the product with 2^112 puts
  // that right for subnormals too. Infinity and NaN then lack the top exponent bits.
  const uint32_t finite = bits_of(float_of(magnitude << 13) * 0x1p112f);
  const uint32_t special = magnitude << 13 | 0x7F800000u;
  return float_of(sign | (magnitude < 0x7C00u ? finite : special));
}

inline uint16_t float_to_float16(float value) {
  const uint32_t sign = bits_of(value) >> 16 & 0x8000u;
  const float magnitude = std::fabs(value);
  // 65536 is past the last finite number and its bits come out as those of infinity.
  const float clamped = magnitude < 65536.0f ? magnitude : 65536.0f;
  const uint32_t bits = bits_of(clamped);
  const uint32_t normal = (bits + 0xFFF + (bits >> 13 & 1) - (112u << 23)) >> 13;
  // Near 0.5 a float32's unit is 2^-24, the unit of float16's subnormals.
  const uint32_t subnormal = bits_of(clamped + 0.5f) - bits_of(0.5f);
  const uint32_t number = clamped < 0x1p-14f ? subnormal : normal;
  return static_cast<uint16_t>(sign | (value == value ? number : 0x7E00u));
}

// Saturates at +-448; NaN becomes 0x7F, as the GPU's conversion has it.
inline uint8_t float_to_float8(float value) {
  const uint32_t sign = bits_of(value) >> 24 & 0x80u;
  const float magnitude = std::fabs(value);
  const float clamped = magnitude < 448.0f ? magnitude : 448.0f;
  const uint32_t bits = bits_of(clamped);
  const uint32_t normal = (bits + 0x7FFFF + (bits >> 20 & 1) - (120u << 23)) >> 20;
  // Near 2^14 a float32's unit is 2^-9, the unit of E4M3's subnormals.
  const uint32_t subnormal = bits_of(clamped + 0x1p14f) - bits_of(0x1p14f);
  const uint32_t number = clamped < 0x1p-6f ? subnormal : normal;
  return static_cast<uint8_t>(value == value ? sign | number : 0x7Fu);
}

// float32 of each of the 256 float8_e4m3fn bytes.
const float* float8_values();

// `count` numbers of `type` from element `offset` of `source` on, as float32.
void load_floats(DataType type, const void* source, int64_t offset, int64_t count, float* out);

// Rounds each of them to `type`, to nearest even.
void round_floats(DataType type, float* values, int64_t count);

// The reverse of load_floats, rounding to nearest even.
void store_floats(DataType type, const float* values, int64_t count, void* out, int64_t offset);

}  // namespace w4afp8::cpu
