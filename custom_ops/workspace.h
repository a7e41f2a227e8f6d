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

// Regions of one allocation.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/types.h"
#include "paddle_api.h"

namespace w4afp8 {

constexpr int64_t kWordBytes = 4, kHalfBytes = 2;  // of an element

// Where regions begin. They are made first, then the memory.
class WorkspaceLayout {
 public:
  // Where a region of so many bytes begins.
  int64_t add(int64_t bytes) {
    const int64_t begin = bytes_;
    bytes_ += round_up(std::max<int64_t>(bytes, 1), kAlignment);
    return begin;
  }
  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kAlignment = 1024;  // the kernels want 16, tensor maps 128

  int64_t bytes_ = 0;
};

// From Paddle's allocator, which gets it back as this ends and so has it for the next call of the stream.
class Workspace {
 public:
  Workspace(const WorkspaceLayout& layout, const phi::Place& place)
      : memory_(paddle::empty({layout.bytes()}, phi::DataType::UINT8, place)),
        begin_(memory_.data<uint8_t>()) {}

  void* at(int64_t begin) const { return begin_ + begin; }

 private:
  paddle::Tensor memory_;
  uint8_t* begin_;
};

}  // namespace w4afp8
