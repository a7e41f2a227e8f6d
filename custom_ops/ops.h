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

// The operators on Paddle tensors, shared by the registered operators and the pybind module. They
// check every argument (ArgumentError), make the outputs and run the kernel. An absent tensor is
// nullptr. docs/design.md says what each one takes.
#pragma once

#include <array>
#include <string_view>

#include "grouped_gemm/params.h"
#include "outputs.h"
#include "paddle_api.h"

namespace w4afp8 {

using paddle::Tensor;

// `start`: see GroupGemmParams.
Tensor group_gemm(const Tensor& x, const Tensor& weight, const Tensor& weight_scale,
                  const Tensor& tokens, const Tensor* group_scale, const Tensor* x_scale,
                  const Tensor* bias, std::string_view weight_format, int64_t group_size,
                  int64_t token_padding, int64_t max_tokens, std::string_view out_dtype,
                  std::string_view accumulation, std::string_view activation, Outputs outputs = {},
                  Start start = Start::kBehind);

Tensor pack_weight(const Tensor& codes, std::string_view weight_format);
Tensor unpack_weight(const Tensor& packed, std::string_view weight_format, int64_t out_features,
                     int64_t in_features);

// FP8 values, scale.
std::array<Tensor, 2> quant_per_token(const Tensor& x);
// `starts_early`, `consumes_h`: see ActivationQuantParams.
std::array<Tensor, 2> activation_quant(const Tensor& h, const Tensor& tokens,
                                       std::string_view activation, int64_t token_padding,
                                       int64_t hadamard_block_size, Outputs outputs = {},
                                       bool starts_early = false, bool consumes_h = false);

// Prefix sums that moe_route sets to -1 (MoeRouteParams).
struct UnknownSums {
  void* sums = nullptr;
  int64_t count = 0;
};

// topk_weights, topk_ids.
std::array<Tensor, 2> moe_route(const Tensor& logits, const Tensor* correction_bias, int64_t topk,
                                std::string_view score, bool norm_topk_prob,
                                double routed_scaling_factor, int64_t n_group, int64_t topk_group,
                                Outputs outputs = {}, UnknownSums unknown = {});
// permuted, scale, tokens, row_index.
std::array<Tensor, 4> moe_dispatch(const Tensor& x, const Tensor& topk_ids, int64_t experts,
                                   int64_t token_padding, int64_t first_expert,
                                   Outputs outputs = {});
// `starts_early`: see MoeCombineParams.
Tensor moe_combine(const Tensor& y, const Tensor& topk_weights, const Tensor& row_index,
                   const Tensor* shared_output, bool starts_early = false);

// A mixture-of-experts layer's weights of one projection.
struct ProjectionArguments {
  const Tensor& weight;
  const Tensor& weight_scale;
  const Tensor* group_scale;
  const Tensor* bias;
  std::string_view weight_format;
  int64_t group_size;
  std::string_view accumulation;
};

// What a layer's experts do, as group_gemm and activation_quant have it.
struct ExpertsArguments {
  ProjectionArguments up_gate;
  ProjectionArguments down;
  std::string_view activation;
  int64_t hadamard_block_size;
  int64_t max_tokens;
};

// Whether the first product applies a gated activation, on a GPU and in one call with the second one. It has so many
// outputs in each of so many rows.
bool fuses_activation(int64_t rows, int64_t outputs, int64_t in_features);

// The experts on rows that are sorted, or padded: group_gemm, activation_quant and group_gemm. Nothing but the output
// and one workspace is allocated, in which what the first two give lies until the call returns. For eager tensors only:
// no operator is registered for it.
Tensor moe_experts(const Tensor& x, const Tensor& tokens, const Tensor* x_scale,
                   const ExpertsArguments& arguments, std::string_view out_dtype,
                   int64_t token_padding);

struct MoeFfnArguments {
  const Tensor& x;
  const Tensor& logits;
  const Tensor* shared_output;
  // as moe_route has them
  const Tensor* correction_bias;
  int64_t topk;
  std::string_view score;
  bool norm_topk_prob;
  double routed_scaling_factor;
  int64_t n_group;
  int64_t topk_group;
  ExpertsArguments experts;
  // as moe_dispatch has it
  int64_t first_expert;
};

// The whole layer: moe_experts between router, dispatch and combine. One workspace again, and eager tensors only.
Tensor moe_ffn(const MoeFfnArguments& arguments);

Tensor mla_k_up(const Tensor& q_nope, const Tensor& w_k, const Tensor& w_k_scale,
                const Tensor* q_scale, std::string_view out_dtype);
Tensor mla_v_up(const Tensor& x, const Tensor& w_v, const Tensor& w_v_scale, const Tensor* x_scale,
                std::string_view out_dtype);

}  // namespace w4afp8
