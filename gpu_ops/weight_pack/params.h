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

// Weight packing: checkpoint order to the order the GEMM reads, and back. Host-safe.
#pragma once

#include "common/types.h"
#include "common/weight_layout.h"

namespace w4afp8 {

struct WeightPackParams {
  uint8_t* codes;   // [experts, out_features, in_features / 2], low nibble first; read by pack
  uint8_t* packed;  // [experts, padded_out, padded_in / 2]; read by unpack
  int64_t experts;
  int64_t out_features;
  int64_t in_features;  // multiple of 32
  WeightFormat format;

  W4AFP8_HOST_DEVICE WeightLayout weight_layout() const { return {out_features, in_features}; }
};

}  // namespace w4afp8
