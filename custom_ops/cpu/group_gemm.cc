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

// The grouped GEMM on the host: a block of weights to float32, Paddle's own matmul, then scales,
// bias and rounding. Blocks are spread over threads; each thread's matmul runs on that thread.

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/activate.h"
#include "cpu/dequantize.h"
#include "cpu/kernels.h"
#include "cpu/numbers.h"
#include "cpu/parallel.h"
#include "paddle_api.h"

namespace w4afp8::cpu {
namespace {

constexpr int64_t kScratchBytes = int64_t{64} << 20;  // of all threads together
constexpr int64_t kMaxChunkRows = 256;                // rows of x in one matmul
constexpr int64_t kMaxBlockOut = 1024;                // outputs in one matmul
// With few rows dequantisation is the work, and its result should still be in the cache for the
// matmul; with many, each conversion of x should serve many outputs.
constexpr int64_t kFewRows = 64;
constexpr int64_t kCachedBlockBytes = 1 << 20;

// One piece of work: a block of outputs of one expert, all of its tokens.
struct Block {
  int64_t expert;
  RowRange rows;
  int64_t sub_begin;  // in sub-blocks of 64 outputs
  int64_t sub_end;
};

struct Blocking {
  int64_t workers;
  int64_t subs;           // sub-blocks of outputs in a block
  int64_t few_rows_subs;  // the same for an expert with up to kFewRows rows
  int64_t rows;           // rows of x in a chunk
};

// A thread holds weights [64 * subs, in], activations [rows, in] and their product. 64 x 64 is the
// least that is worth a matmul call; threads are given up where memory does not allow it.
Blocking choose_blocking(const GroupGemmParams& params, int64_t active_experts) {
  const int64_t row_bytes = params.in_features * sizeof(float);
  const int64_t least = 2 * kSubBlockOut * row_bytes + kSubBlockOut * kSubBlockOut * sizeof(float);
  Blocking blocking;
  blocking.workers = std::clamp<int64_t>(kScratchBytes / least, 1, max_workers());
  const int64_t budget = kScratchBytes / blocking.workers;
  const int64_t product_bytes = kMaxChunkRows * kMaxBlockOut * sizeof(float);
  const int64_t operand_rows = std::max<int64_t>(0, budget - product_bytes) / row_bytes;
  blocking.rows = std::clamp<int64_t>(operand_rows / 4, kSubBlockOut, kMaxChunkRows);
  // Four blocks a thread, so that the threads end at about the same time.
  const int64_t subs = params.weight_layout().padded_out() / kSubBlockOut;
  const int64_t fair = ceil_div(subs * active_experts, 4 * blocking.workers);
  const int64_t fitting = (operand_rows - blocking.rows) / kSubBlockOut;
  blocking.subs = std::max<int64_t>(1, std::min({fair, fitting, kMaxBlockOut / kSubBlockOut}));
  const int64_t cached = kCachedBlockBytes / (kSubBlockOut * row_bytes);
  blocking.few_rows_subs = std::clamp<int64_t>(cached, 1, blocking.subs);
  return blocking;
}

std::vector<Block> list_blocks(const GroupGemmParams& params, const Blocking& blocking) {
  const int64_t subs = params.weight_layout().padded_out() / kSubBlockOut;
  std::vector<Block> blocks;
  for (int64_t expert = 0; expert < params.tokens.experts; ++expert) {
    const RowRange rows = params.tokens.rows_of(expert);
    if (rows.begin == rows.end) continue;
    const int64_t step = rows.end - rows.begin <= kFewRows ? blocking.few_rows_subs : blocking.subs;
    for (int64_t sub = 0; sub < subs; sub += step) {
      blocks.push_back({expert, rows, sub, std::min(subs, sub + step)});
    }
  }
  return blocks;
}

int64_t count_active_experts(const TokenLayout& tokens) {
  int64_t active = 0;
  for (int64_t expert = 0; expert < tokens.experts; ++expert) {
    const RowRange rows = tokens.rows_of(expert);
    active += rows.begin < rows.end;
  }
  return active;
}

void load_activations(const GroupGemmParams& params, int64_t row, int64_t rows, float* out) {
  const float* values = float8_values();
  const uint8_t* x = params.x + row * params.in_features;
  for (int64_t i = 0; i < rows * params.in_features; ++i) out[i] = values[x[i]];
}

float activation_scale(const GroupGemmParams& params, int64_t row) {
  if (params.x_scale_mode == ActivationScaleMode::kNone) return 1.0f;
  return params.x_scale[params.x_scale_mode == ActivationScaleMode::kPerToken ? row : 0];
}

// Scales, bias and rounding of one row of the block's product.
void store_row(const GroupGemmParams& params, const Block& block, int64_t row, float* product) {
  const int64_t out_begin = block.sub_begin * kSubBlockOut;
  const int64_t count = std::min(params.out_features, block.sub_end * kSubBlockOut) - out_begin;
  const int64_t channel = block.expert * params.out_features + out_begin;
  const float* weight_scale = params.weight_scale + channel;
  const float x_scale = activation_scale(params, row);
  // The activation's scale first: a weight scale alone may be 2^127, and the sum would overflow.
  for (int64_t i = 0; i < count; ++i) product[i] = product[i] * x_scale * weight_scale[i];
  if (params.bias != nullptr) {
    float bias[kMaxBlockOut];
    load_floats(params.out_type, params.bias, channel, count, bias);
    for (int64_t i = 0; i < count; ++i) product[i] += bias[i];
  }
  store_floats(params.out_type, product, count, params.out, row * params.out_features + out_begin);
}

void run_block(const GroupGemmParams& params, const Dequantizer& dequantizer, const Block& block,
               int64_t chunk_rows) {
  const auto host_floats = [&](int64_t rows) {
    return paddle::empty({rows, params.in_features}, paddle::DataType::FLOAT32, paddle::CPUPlace());
  };
  const int64_t block_out = (block.sub_end - block.sub_begin) * kSubBlockOut;
  paddle::Tensor weight = host_floats(block_out);
  dequantizer.run(block.expert, block.sub_begin, block.sub_end, weight.data<float>());
  for (int64_t row = block.rows.begin; row < block.rows.end; row += chunk_rows) {
    const int64_t rows = std::min(chunk_rows, block.rows.end - row);
    paddle::Tensor x = host_floats(rows);
    load_activations(params, row, rows, x.data<float>());
    paddle::Tensor product = paddle::matmul(x, weight, false, true);
    for (int64_t i = 0; i < rows; ++i) {
      store_row(params, block, row + i, product.data<float>() + i * block_out);
    }
  }
}

// Into params.out, all of the out_features.
void multiply(const GroupGemmParams& params) {
  const Dequantizer dequantizer(params);
  const Blocking blocking = choose_blocking(params, count_active_experts(params.tokens));
  const std::vector<Block> blocks = list_blocks(params, blocking);
  parallel_for(blocks.size(), 1, blocking.workers, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run_block(params, dequantizer, blocks[i], blocking.rows);
  });
}

// params.out of `product`, which has all of the out_features of each row.
void activate_rows(const GroupGemmParams& params, const void* product) {
  const int64_t width = params.out_features, features = params.stored_features();
  for (int64_t expert = 0; expert < params.tokens.experts; ++expert) {
    const RowRange rows = params.tokens.rows_of(expert);
    // An exponential costs some eight simple steps.
    parallel_for(rows.end - rows.begin, row_grain(8 * width), [&](int64_t begin, int64_t end) {
      std::vector<float> values(width);
      for (int64_t row = rows.begin + begin; row < rows.begin + end; ++row) {
        load_floats(params.out_type, product, row * width, width, values.data());
        activate(params.activation, params.out_type, features, values.data());
        store_floats(params.out_type, values.data(), features, params.out, row * features);
      }
    });
  }
}

}  // namespace

void group_gemm(const GroupGemmParams& params) {
  if (!is_gated(params.activation)) return multiply(params);
  GroupGemmParams all = params;
  all.activation = Activation::kNone;
  paddle::Tensor product =
      paddle::empty({params.tokens.num_rows, params.out_features},
                    params.out_type == DataType::kFloat16 ? paddle::DataType::FLOAT16
                                                          : paddle::DataType::BFLOAT16,
                    paddle::CPUPlace());
  all.out = product.data();
  multiply(all);
  activate_rows(params, all.out);
}

}  // namespace w4afp8::cpu
