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

#include <vector>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/row_quant.h"

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

// h holds gate then up, or for gelu just the features; the result replaces its front.
void activate(Activation activation, int64_t features, float* h) {
  const float* up = h + features;
  switch (activation) {
    case Activation::kNone:
      break;
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
}

// The orthonormal Walsh-Hadamard transform of every `size` features, a power of two that divides
// them. CUDA has the same additions in the same order.
void hadamard(float* values, int64_t features, int64_t size) {
  for (int64_t step = 1; step < size; step *= 2) {
    for (int64_t first = 0; first < features; first += 2 * step) {
      for (int64_t i = first; i < first + step; ++i) {
        const float lower = values[i], upper = values[i + step];
        values[i] = lower + upper;
        values[i + step] = lower - upper;
      }
    }
  }
  const float factor = 1.0f / std::sqrt(static_cast<float>(size));
  for (int64_t i = 0; i < features; ++i) values[i] *= factor;
}

}  // namespace

void activation_quant(const ActivationQuantParams& params) {
  const int64_t features = params.features;
  const int64_t width = params.activation == Activation::kGelu ? features : 2 * features;
  // An exponential costs some eight simple steps.
  parallel_for(params.tokens.num_rows, row_grain(8 * width), [&](int64_t begin, int64_t end) {
    std::vector<float> values(width);
    for (int64_t row = begin; row < end; ++row) {
      if (!params.tokens.is_token(row)) continue;
      load_floats(params.in_type, params.h, row * width, width, values.data());
      activate(params.activation, features, values.data());
      if (params.hadamard_block_size > 0) {
        hadamard(values.data(), features, params.hadamard_block_size);
      }
      quantize_row(values.data(), features, params.out + row * features, params.scale + row);
    }
  });
}

}  // namespace w4afp8::cpu
