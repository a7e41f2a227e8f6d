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

// The up projections of multi-head latent attention on the host: the weights of a head to float32,
// Paddle's own matmul, and rounding. Blocks of outputs are spread over threads.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/numbers.h"
#include "cpu/parallel.h"
#include "paddle_api.h"

namespace w4afp8::cpu {
namespace {

constexpr int64_t kMaxChunkRows = 256;  // rows of x in one matmul
constexpr int64_t kMaxBlockOut = 512;   // outputs in one matmul, a multiple of kMlaBlock
// Of weights that count relative to their output's largest scale: how many binades below it they are
// nothing, as layout.h has them.
constexpr int kRelativeSpread = 36;
constexpr int kE8m0Bias = 127;

// One piece of work: some outputs of one head, for all tokens.
struct Block {
  int64_t head;
  int64_t begin;  // outputs, multiples of kMlaBlock
  int64_t end;
};

float e2m1_value(uint32_t code) {
  static const float kMagnitudes[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  return code & 8 ? -kMagnitudes[code & 7] : kMagnitudes[code & 7];
}

// 2^exponent for -127 .. 127.
float power_of_two(int exponent) {
  return float_of(exponent > -127 ? static_cast<uint32_t>(exponent + 127) << 23 : 1u << 22);
}

// Weights and scales of one head.
class HeadWeight {
 public:
  HeadWeight(const MlaUpParams& params, int64_t head)
      : layout_(params.layout()),
        codes_(params.weight + head * layout_.head_bytes()),
        scales_(params.weight_scale + head * layout_.head_scale_bytes()) {}

  int scale(int64_t out, int64_t in) const { return scales_[layout_.scale_byte(out, in)]; }

  float code_value(int64_t out, int64_t in) const {
    const MlaCodePlace place =
        mla_code_place(static_cast<int32_t>(out % kMlaBlock), static_cast<int32_t>(in % kMlaBlock));
    uint32_t word;
    std::memcpy(&word, codes_ + layout_.block(out, in) * kMlaBlockBytes + place.word, sizeof(word));
    return e2m1_value(decode_mla_code(word, place.half, place.fragment));
  }

  // The largest scale among those that share a residual with the weights of an output.
  int largest_scale(int64_t out) const {
    const int64_t step = layout_.op == MlaUp::kKUp ? 1 : kMlaGroup;
    int largest = 0;
    for (int64_t in = 0; in < layout_.in_features; in += step) {
      largest = std::max(largest, scale(out, in));
    }
    return largest;
  }

 private:
  const MlaUpLayout layout_;
  const uint8_t* codes_;
  const uint8_t* scales_;
};

// Fills row `out` of the block's weights and returns what its sums are multiplied with.
float dequantize_row(const MlaUpParams& params, const HeadWeight& head, int64_t out, float* row) {
  const bool is_float8 = params.x_scale != nullptr;
  if (params.type == DataType::kBFloat16 && !is_float8) {
    for (int64_t in = 0; in < params.in_features; ++in) {
      row[in] = head.code_value(out, in) * power_of_two(head.scale(out, in) - kE8m0Bias);
    }
    return 1.0f;
  }
  const int largest = head.largest_scale(out);
  const int shift = is_float8 ? kMlaFloat8Shift : kMlaFloat16Shift;
  for (int64_t in = 0; in < params.in_features; ++in) {
    const int below = largest - head.scale(out, in);
    const float scale = below > kRelativeSpread ? 0.0f : power_of_two(shift - below);
    row[in] = head.code_value(out, in) * scale;
    if (is_float8) row[in] = float8_values()[float_to_float8(row[in])];
  }
  return std::ldexp(1.0f, largest - kE8m0Bias - shift);
}

// The inputs of a token and head.
void load_row(const MlaUpParams& params, int64_t token, int64_t head, float* row) {
  const int64_t offset = token * params.x_token_stride + head * params.x_head_stride;
  if (params.x_scale == nullptr) {
    return load_floats(params.type, params.x, offset, params.in_features, row);
  }
  const uint8_t* bytes = static_cast<const uint8_t*>(params.x) + offset;
  for (int64_t i = 0; i < params.in_features; ++i) row[i] = float8_values()[bytes[i]];
}

void run_block(const MlaUpParams& params, const Block& block) {
  const int64_t in = params.in_features, out = params.out_features;
  const int64_t block_out = block.end - block.begin;
  const auto host_floats = [&](int64_t rows) {
    return paddle::empty({rows, in}, paddle::DataType::FLOAT32, paddle::CPUPlace());
  };
  const HeadWeight head(params, block.head);
  paddle::Tensor weight = host_floats(block_out);
  std::vector<float> residual(block_out);
  for (int64_t i = 0; i < block_out; ++i) {
    residual[i] = dequantize_row(params, head, block.begin + i, weight.data<float>() + i * in);
  }
  for (int64_t first = 0; first < params.tokens; first += kMaxChunkRows) {
    const int64_t rows = std::min(kMaxChunkRows, params.tokens - first);
    paddle::Tensor x = host_floats(rows);
    for (int64_t i = 0; i < rows; ++i) {
      load_row(params, first + i, block.head, x.data<float>() + i * in);
    }
    paddle::Tensor product = paddle::matmul(x, weight, false, true);
    for (int64_t i = 0; i < rows; ++i) {
      float* values = product.data<float>() + i * block_out;
      const int64_t row = (first + i) * params.heads + block.head;
      const float x_scale = params.x_scale == nullptr ? 1.0f : params.x_scale[row];
      for (int64_t j = 0; j < block_out; ++j) values[j] = values[j] * residual[j] * x_scale;
      store_floats(params.type, values, block_out, params.out, row * out + block.begin);
    }
  }
}

}  // namespace

void mla_up(const MlaUpParams& params) {
  std::vector<Block> blocks;
  for (int64_t head = 0; head < params.heads; ++head) {
    for (int64_t begin = 0; begin < params.out_features; begin += kMaxBlockOut) {
      blocks.push_back({head, begin, std::min(params.out_features, begin + kMaxBlockOut)});
    }
  }
  parallel_for(blocks.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run_block(params, blocks[i]);
  });
}

}  // namespace w4afp8::cpu
