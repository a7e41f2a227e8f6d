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

#include "cpu/activate.h"

#include <cmath>

#include "cpu/numbers.h"

namespace w4afp8::cpu {
namespace {

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

float swiglu(float gate, float up) { return gate * sigmoid(gate) * up; }

// gpt-oss. The comparisons are written so that NaN passes through the clamps.
float swiglu_oai(float gate, float up) {
  constexpr float kLimit = 7.0f, kAlpha = 1.702f;
  gate = gate > kLimit ? kLimit : gate;
  up = up > kLimit ? kLimit : (up < -kLimit ? -kLimit : up);
  return gate * sigmoid(kAlpha * gate) * (up + 1.0f);
}

float gelu(float x) { return 0.5f * x * (1.0f + std::erf(x * 0.70710678f)); }

}  // namespace

void activate(Activation activation, DataType type, int64_t features, float* h) {
  const float* up = h + features;
  switch (activation) {
    case Activation::kNone: return;
    case Activation::kSwiglu:
      for (int64_t i = 0; i < features; ++i) h[i] = swiglu(h[i], up[i]);
      break;
    case Activation::kSwigluOai:
      for (int64_t i = 0; i < features; ++i) h[i] = swiglu_oai(h[i], up[i]);
      break;
    case Activation::kGelu:
      for (int64_t i = 0; i < features; ++i) h[i] = gelu(h[i]);
      break;
  }
  round_floats(type, h, features);
}

}  // namespace w4afp8::cpu
