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

// Tile shapes of the up projections. Host-safe.
#pragma once

#include "mla_up/params.h"

namespace w4afp8 {

// The product runs transposed: outputs are the 64-row side of wgmma, tokens its n side. A block works
// on tiles of kOut outputs of one head x kTokens tokens over all inputs.
template <int kTokens_, int kRows_, int kOutBlocks_, int kSplits_, int kStages_, int kBlocksPerSm_>
struct MlaShape {
  static constexpr int kTokens = kTokens_;        // n of wgmma
  static constexpr int kRows = kRows_;            // warpgroups along the outputs
  static constexpr int kOutBlocks = kOutBlocks_;  // of 64 outputs, for each of them
  // Warpgroups that share the inputs of the same outputs; their sums are added at the end.
  static constexpr int kSplits = kSplits_;
  static constexpr int kStages = kStages_;  // parts of token tiles in shared memory; 1: see below
  static constexpr int kMostBlocks = kBlocksPerSm_;  // on a multiprocessor at a time

  // A block for each token tile, gone when its outputs are written. Else a block walks over tiles
  // and keeps its weights.
  static constexpr bool kOneTile = kStages == 1;
  static constexpr int kThreads = 128 * kRows * kSplits;
  static constexpr int kOut = 64 * kRows * kOutBlocks;
};

// kFloat8: activations are E4M3 bytes with a scale for each token and head, and the products those of
// FP8 tensor cores; kType is the outputs' then.
template <MlaUp kOp_, DataType kType_, int kInBlocks_, class Shape, bool kFloat8_ = false>
struct MlaTile : Shape {
  static constexpr MlaUp kOp = kOp_;
  static constexpr DataType kType = kType_;
  static constexpr bool kFloat8 = kFloat8_;
  static constexpr int kInBlocks = kInBlocks_;                   // 64 inputs each
  static constexpr int kOwnBlocks = kInBlocks / Shape::kSplits;  // of a warpgroup
  // Tiles of long kernels. Others' registers do not hold what tells the last tiles apart.
  static constexpr bool kMayBeLong = !Shape::kOneTile && Shape::kOutBlocks == 1;
  // A token's inputs are lines of 128 bytes in shared memory, the last of them perhaps half used.
  static constexpr int kRowBytes = kInBlocks * (kFloat8 ? 64 : 128);
  static constexpr int kLines = (kRowBytes + 127) / 128;
  // A single tile of many tokens comes by tensor copies, 64 inputs each with a barrier of its own, and
  // warpgroups need not wait for each other.
  static constexpr bool kBoxes = kOp == MlaUp::kVUp && Shape::kOneTile && Shape::kTokens >= 64;
  // Inputs arrive in parts, so that the first are multiplied while the last are on their way.
  static constexpr int kParts = kBoxes                          ? kOwnBlocks
                                : Shape::kOneTile || kLines < 4 ? 1
                                                                : kLines / 2;
  static constexpr int kPartLines = Shape::kOneTile ? kLines : kLines / kParts;
  static constexpr int kPartBytes = kRowBytes / kParts;  // of a token, where there are no boxes
  static constexpr int kPartBlocks = kOwnBlocks / kParts;
  // Stages that are filled ahead. With several parts the tensor cores may still read the last one.
  static constexpr int kAhead = Shape::kOneTile ? 1 : Shape::kStages - (kParts > 1 ? 2 : 1);
  // Dequantised once and kept in registers for all tokens, where that takes few enough.
  static constexpr bool kResident =
      kFloat8 || (!Shape::kOneTile && kInBlocks * Shape::kOutBlocks <= 3);
  // Of the fragments of a block, else: two, or one where threads get no more than 64 registers.
  static constexpr int kBuffers = Shape::kThreads * Shape::kMostBlocks < 1024 ? 2 : 1;

  // Chosen for large outputs only, see the epilogue.
  static constexpr bool kStreams = Shape::kOut == 512;

  static constexpr int kStageBytes = Shape::kTokens * kPartLines * 128;
  // 64 outputs of a token, and 16 bytes more so that a column of tokens meets all banks.
  static constexpr int kStagedRowBytes = 64 * 2 + 16;
  static constexpr int kStagedBytes = Shape::kTokens * kStagedRowBytes;
  // Two where a tile has several fragments, so that one barrier a fragment is enough.
  static constexpr int kStagedBuffers = Shape::kOutBlocks > 1 ? 2 : 1;
  static constexpr int kStagedOffset = Shape::kStages * kStageBytes;
  static constexpr int kSumsOffset =
      kStagedOffset + Shape::kRows * kStagedBuffers * kStagedBytes;  // of the other splits
  static constexpr int kSumsBytes = 64 * Shape::kTokens * 4;         // of one warpgroup
  // Scales of the tokens, in turns with the stages.
  static constexpr int kScalesOffset =
      kSumsOffset + (Shape::kSplits - 1) * Shape::kRows * kSumsBytes;
  static constexpr int kScaleBytes = kFloat8 ? Shape::kTokens * 4 : 0;
  static constexpr int kBarriersOffset = kScalesOffset + Shape::kStages * kScaleBytes;
  static constexpr int kSharedBytes = kBarriersOffset + (kBoxes ? kParts * 8 : 0);

  static_assert(Shape::kTokens % 16 == 0 && Shape::kTokens <= 256,
                "the epilogue stages 16 tokens at a time");
  static_assert(kAhead >= 1 && kOwnBlocks % kParts == 0, "too few stages, or half a part");
  static_assert(Shape::kSplits == 1 ||
                    (Shape::kOneTile && Shape::kOutBlocks == 1 && kInBlocks % Shape::kSplits == 0),
                "only one tile with one fragment is split");
  static_assert(!kFloat8 || Shape::kSplits == 1, "FP8's fragments are of all inputs");
  static_assert(kParts == 1 || Shape::kOutBlocks == 1, "parts are multiplied in order");

  // CUDA keeps 1 KB of the multiprocessor's 228 KB for each block.
  static constexpr int kFitting = 228 * 1024 / (kSharedBytes + 1024);
  static constexpr int kBlocksPerSm = kFitting < Shape::kMostBlocks ? kFitting : Shape::kMostBlocks;

  static_assert(kFitting >= 1, "the stages do not fit");
};

}  // namespace w4afp8
