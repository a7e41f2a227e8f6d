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

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/numbers.h"
#include "cpu/parallel.h"

namespace w4afp8::cpu {
namespace {

void softmax(float* values, int64_t count) {
  float largest = values[0];
  for (int64_t i = 1; i < count; ++i) largest = std::max(largest, values[i]);
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) sum += values[i] = std::exp(values[i] - largest);
  for (int64_t i = 0; i < count; ++i) values[i] /= sum;
}

void sigmoid(float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = 1.0f / (1.0f + std::exp(-values[i]));
}

// Index of the largest key, the lowest of equals. The key of what is no candidate is NaN; a key that was NaN
// from the start counts as minus infinity, so that the ids are always different experts.
int64_t arg_largest(const std::vector<float>& keys) {
  int64_t best = -1;
  for (int64_t i = 0; i < static_cast<int64_t>(keys.size()); ++i) {
    if (std::isnan(keys[i])) continue;
    if (best < 0 || keys[i] > keys[best]) best = i;
  }
  return best;
}

// Sum of the two largest keys of a group of experts; the key itself where there is one.
float group_score(const float* keys, int64_t count) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  if (count == 1) return keys[0];
  float first = kLowest, second = kLowest;
  for (int64_t i = 0; i < count; ++i) {
    second = std::max(second, std::min(first, keys[i]));
    first = std::max(first, keys[i]);
  }
  const float sum = first + second;
  return std::isnan(sum) ? kLowest : sum;  // infinities of both signs
}

class TokenRouter {
 public:
  explicit TokenRouter(const MoeRouteParams& params)
      : params_(params), scores_(params.experts), keys_(params.experts) {}

  void run(int64_t token) {
    load_scores(token);
    if (params_.n_group > 1) drop_other_groups();
    int32_t* ids = params_.topk_ids + token * params_.topk;
    float* weights = params_.topk_weights + token * params_.topk;
    float sum = 0.0f;
    for (int64_t slot = 0; slot < params_.topk; ++slot) {
      const int64_t expert = arg_largest(keys_);
      keys_[expert] = std::numeric_limits<float>::quiet_NaN();
      ids[slot] = static_cast<int32_t>(expert);
      weights[slot] = scores_[expert];
      sum += weights[slot];
    }
    for (int64_t slot = 0; slot < params_.topk; ++slot) {
      if (params_.norm_topk_prob) weights[slot] /= sum;
      weights[slot] *= params_.routed_scaling_factor;
    }
  }

 private:
  void load_scores(int64_t token) {
    const int64_t experts = params_.experts;
    load_floats(params_.logits_type, params_.logits, token * experts, experts, scores_.data());
    if (params_.score == RouteScore::kSoftmax) {
      softmax(scores_.data(), experts);
    } else {
      sigmoid(scores_.data(), experts);
    }
    for (int64_t i = 0; i < experts; ++i) {
      const float bias = params_.correction_bias == nullptr ? 0.0f : params_.correction_bias[i];
      const float key = scores_[i] + bias;
      keys_[i] = std::isnan(key) ? -std::numeric_limits<float>::infinity() : key;
    }
  }

  // Makes only the experts of the best groups candidates.
  void drop_other_groups() {
    const int64_t size = params_.group_experts();
    std::vector<float> groups(params_.n_group);
    std::vector<bool> is_kept(params_.n_group, false);
    for (int64_t g = 0; g < params_.n_group; ++g) {
      groups[g] = group_score(keys_.data() + g * size, size);
    }
    for (int64_t i = 0; i < params_.topk_group; ++i) {
      const int64_t best = arg_largest(groups);
      groups[best] = std::numeric_limits<float>::quiet_NaN();
      is_kept[best] = true;
    }
    for (int64_t i = 0; i < params_.experts; ++i) {
      if (!is_kept[i / size]) keys_[i] = std::numeric_limits<float>::quiet_NaN();
    }
  }

  const MoeRouteParams& params_;
  std::vector<float> scores_;
  std::vector<float> keys_;
};

}  // namespace

void moe_route(const MoeRouteParams& params) {
  std::fill_n(params.unknown_sums, params.num_unknown, -1);
  const int64_t grain = row_grain((8 + params.topk) * params.experts);
  parallel_for(params.num_tokens, grain, [&](int64_t begin, int64_t end) {
    TokenRouter router(params);
    for (int64_t token = begin; token < end; ++token) router.run(token);
  });
}

}  // namespace w4afp8::cpu
