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

#include "group_gemm_arguments.h"

#include "activations.h"

namespace w4afp8 {
namespace {

constexpr int64_t kOutUnit = 8;       // outputs of one 16-byte store
constexpr int64_t kInUnit = 32;       // in_features of one wgmma
constexpr int64_t kMxfp4Group = 32;   // codes that share an E8M0 scale
constexpr int64_t kLargeGroup = 128;  // larger groups are multiples of one k block
constexpr int64_t kPerChannel = -1;   // group_size without groups

// Fills what the activations say by themselves.
void read_x(const Tensor& x, int64_t token_padding, GroupGemmParams* params) {
  check_tensor(x, "x");
  check_dtype(x, "x", {PaddleType::FLOAT8_E4M3FN});
  check_range(token_padding, "token_padding", 0, INT32_MAX);
  check_activation_rank(x, "x", token_padding);
  params->in_features = x.dims()[x.dims().size() - 1];
  check_multiple(params->in_features, "in_features of x", kInUnit);
  check_range(params->in_features, "in_features of x", 1, INT32_MAX);
  check_range(rows_of(x), "tokens of x", 0, INT32_MAX);
  params->x = static_cast<const uint8_t*>(x.data());
}

// Fills what the weights, their scales and the number of experts say.
void read_weight(const Tensor& x, const Tensor& weight, const Tensor& weight_scale,
                 GroupGemmParams* params) {
  check_tensor(weight_scale, "weight_scale", x);
  check_dtype(weight_scale, "weight_scale", {PaddleType::FLOAT32});
  check_rank(weight_scale, "weight_scale", 2, "[experts, out_features]");
  params->tokens.experts = weight_scale.dims()[0];
  params->out_features = weight_scale.dims()[1];
  check_range(params->tokens.experts, "experts of weight_scale", 1, kMaxExperts);
  check_multiple(params->out_features, "out_features of weight_scale", kOutUnit);
  check_range(params->out_features, "out_features of weight_scale", 1, INT32_MAX);

  const WeightLayout layout = params->weight_layout();
  check_tensor(weight, "weight", x);
  check_dtype(weight, "weight", {PaddleType::UINT8});
  check_shape(weight, "weight",
              {params->tokens.experts, layout.padded_out(), layout.padded_in() / 2});
  params->weight = weight.data<uint8_t>();
  params->weight_scale = weight_scale.data<float>();
}

void check_int4_group(int64_t group_size, int64_t in_features) {
  const bool known =
      group_size == 32 || group_size == 64 || (group_size > 0 && group_size % kLargeGroup == 0);
  if (known && in_features % group_size == 0) return;
  fail("group_size",
       "-1, 32, 64 or a multiple of 128, that divides in_features " + std::to_string(in_features),
       std::to_string(group_size));
}

void require_group_scale(const Tensor* group_scale, const Tensor& x, const char* shape) {
  if (group_scale == nullptr) {
    fail("group_scale", std::string("a tensor ") + shape + " with this group_size", "None");
  }
  check_tensor(*group_scale, "group_scale", x);
}

// Fills group_size, group_scale and its type.
void read_group_scale(const Tensor* group_scale, const Tensor& x, int64_t group_size,
                      GroupGemmParams* params) {
  const int64_t experts = params->tokens.experts, out = params->out_features;
  params->group_scale = nullptr;
  params->group_scale_type = GroupScaleType::kNone;
  params->group_size = group_size;
  if (params->weight_format == WeightFormat::kMxfp4) {
    if (group_size != kMxfp4Group && group_size != kPerChannel) {
      fail("group_size", "32 (or -1, the format's own) with mxfp4", std::to_string(group_size));
    }
    params->group_size = kMxfp4Group;
    params->group_scale_type = GroupScaleType::kE8M0;
    require_group_scale(group_scale, x, "[experts, in_features / 128 rounded up, out_features, 4]");
    check_dtype(*group_scale, "group_scale", {PaddleType::UINT8});
    const int64_t k_blocks = params->weight_layout().k_blocks();
    check_shape(*group_scale, "group_scale", {experts, k_blocks, out, kSubBlockIn / kMxfp4Group});
  } else if (group_size == kPerChannel) {
    if (group_scale == nullptr) return;
    fail("group_scale", "None with group_size -1", "a tensor " + to_string(group_scale->dims()));
  } else {
    check_int4_group(group_size, params->in_features);
    require_group_scale(group_scale, x, "[experts, in_features / group_size, out_features]");
    check_dtype(*group_scale, "group_scale", {PaddleType::FLOAT32, PaddleType::BFLOAT16});
    params->group_scale_type = group_scale->dtype() == PaddleType::FLOAT32
                                   ? GroupScaleType::kFloat32
                                   : GroupScaleType::kBFloat16;
    check_shape(*group_scale, "group_scale", {experts, params->in_features / group_size, out});
  }
  params->group_scale = group_scale->data();
}

void read_tokens(const Tensor& tokens, const Tensor& x, int64_t token_padding,
                 TokenLayout* layout) {
  check_tokens(tokens, x, token_padding);
  const int64_t length = tokens.numel();
  layout->tokens = tokens.data();
  layout->is_int64 = tokens.dtype() == PaddleType::INT64;
  layout->leading_zero = token_padding == 0 && length == layout->experts + 1;
  layout->padding = token_padding;
  layout->num_rows = rows_of(x);
  if (layout->leading_zero || length == layout->experts) return;
  const std::string experts = std::to_string(layout->experts);
  fail("tokens",
       token_padding > 0 ? "the counts of " + experts + " experts"
                         : "prefix sums of " + experts + " experts, with or without a leading 0",
       std::to_string(length) + " entries");
}

void read_x_scale(const Tensor* x_scale, const Tensor& x, GroupGemmParams* params) {
  params->x_scale = nullptr;
  params->x_scale_mode = ActivationScaleMode::kNone;
  if (x_scale == nullptr) return;
  check_tensor(*x_scale, "x_scale", x);
  check_dtype(*x_scale, "x_scale", {PaddleType::FLOAT32});
  params->x_scale = x_scale->data<float>();
  const common::DDim& shape = x_scale->dims();
  if (shape.size() == 1 && shape[0] == 1) {
    params->x_scale_mode = ActivationScaleMode::kPerTensor;
    return;
  }
  params->x_scale_mode = ActivationScaleMode::kPerToken;
  const common::DDim& rows = x.dims();
  const bool same = shape.size() == rows.size() - 1 && shape[0] == rows[0] &&
                    (shape.size() == 1 || shape[1] == rows[1]);
  if (!same) {
    fail("x_scale", "the shape [1] or x's without in_features", to_string(shape));
  }
}

void read_bias(const Tensor* bias, const Tensor& x, PaddleType out_type, GroupGemmParams* params) {
  params->bias = nullptr;
  if (bias == nullptr) return;
  check_tensor(*bias, "bias", x);
  check_dtype(*bias, "bias", {out_type});
  check_shape(*bias, "bias", {params->tokens.experts, params->out_features});
  params->bias = bias->data();
}

// Fills it; out_features and whether this will be a launch are known.
void read_activation(std::string_view activation, bool is_launch, GroupGemmParams* params) {
  params->activation = gated_activation_of(activation, "activation");
  if (params->activation == Activation::kNone || !is_launch) return;
  check_multiple(params->out_features, "out_features of weight_scale with an activation on a GPU",
                 kActivatedOutUnit);
}

void check_all_aligned(const GroupGemmParams& params) {
  check_aligned(params.x, "x");
  check_aligned(params.weight, "weight");
  check_aligned(params.weight_scale, "weight_scale");
  check_aligned(params.group_scale, "group_scale");
  check_aligned(params.bias, "bias");
}

}  // namespace

GroupGemmParams read_arguments(const GroupGemmArguments& a) {
  GroupGemmParams params;
  read_x(a.x, a.token_padding, &params);
  params.weight_format = weight_format_of(a.weight_format, "weight_format");
  read_weight(a.x, a.weight, a.weight_scale, &params);
  if (a.token_padding > 0) {
    check_shape(a.x, "x", {params.tokens.experts, a.token_padding, params.in_features});
  }
  read_tokens(a.tokens, a.x, a.token_padding, &params.tokens);
  read_group_scale(a.group_scale, a.x, a.group_size, &params);
  read_x_scale(a.x_scale, a.x, &params);
  read_bias(a.bias, a.x, a.out_type, &params);
  check_range(a.max_tokens, "max_tokens", -1, INT64_MAX);
  params.max_tokens = a.max_tokens;
  params.accumulation = accumulation_of(a.accumulation, "accumulation");
  params.out_type = a.out_type == PaddleType::BFLOAT16 ? DataType::kBFloat16 : DataType::kFloat16;
  const bool is_launch = on_gpu(a.x);
  read_activation(a.activation, is_launch, &params);
  if (is_launch && params.tokens.num_rows > 0) check_all_aligned(params);
  return params;
}

}  // namespace w4afp8
