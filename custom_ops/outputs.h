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

// Where an operator's outputs are: in new tensors, or in memory that its caller has for them.
#pragma once

#include <initializer_list>
#include <vector>

#include "paddle_api.h"

namespace w4afp8 {

class Outputs {
 public:
  // New tensors.
  Outputs() = default;
  // One address for each output, in the order in which the operator makes them. The memory is large
  // enough, aligned for the kernels, where the operator runs, and lives longer than the tensors.
  Outputs(std::initializer_list<void*> addresses) : addresses_(addresses) {}

  paddle::Tensor make(const std::vector<int64_t>& shape, phi::DataType type,
                      const phi::Place& place) {
    if (addresses_.empty()) return paddle::empty(shape, type, place);
    return paddle::from_blob(addresses_[next_++], shape, type, phi::DataLayout::NCHW, place);
  }

 private:
  std::vector<void*> addresses_;
  size_t next_ = 0;
};

}  // namespace w4afp8
