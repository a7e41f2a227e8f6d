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

// The consumers' main loop: one warpgroup multiplies its 64 outputs by the tile's tokens over all k
// blocks. Weights go from packed words to A fragments in registers; tokens are read by the tensor
// cores where the copy engine left them.
#pragma once

#include <cutlass/cutlass.h>

#include "grouped_gemm/dequant.cuh"
#include "grouped_gemm/scheduler.cuh"
#include "grouped_gemm/sums.cuh"

namespace w4afp8 {

template <class Tile, class Format>
class MainLoop {
 public:
  using Storage = SharedStorage<Tile, Format>;
  template <int kTokens>
  using Sums = typename SumsOf<Format::kSummation, kTokens, Format>::Type;
  using WidestSums = Sums<Tile::kTokens>;

  __device__ MainLoop(const GroupGemmParams& params, Storage& shared)
      : shared_(shared),
        params_(params),
        thread_(threadIdx.x % 128),
        warpgroup_(cutlass::canonical_warp_group_idx()),
        k_blocks_(static_cast<int>(params.weight_layout().k_blocks())),
        most_(WidestSums::largest_scale(k_blocks_, Format::kLargest)),
        first_tokens_(token_tile_place(ptx::shared_address(shared.tokens))),
        listed_(ptx::shared_address(shared.tiles + kListedTiles - 1)) {
    static_assert(offsetof(Storage, tiles) % kListBytes == 0);
    asm volatile("" : "+r"(first_tokens_));  // or the compiler would make it anew in each k block
  }

  // Waits for the next tile's first stage, by when the tile is listed; false after the last one. Tiles without
  // tokens, which nobody copies, are passed over.
  __device__ __forceinline__ bool next(TileCoordinates& tile) {
    ptx::mbarrier_wait(&shared_.full[ring_.stage], ring_.parity);
    do {
      listed_ =
          listed_ / kListBytes * kListBytes + (listed_ + sizeof(TileCoordinates)) % kListBytes;
      tile = this->tile();
    } while (tile.expert >= 0 && tile.num_tokens <= 0);
    if constexpr (Format::kIsGated && Tile::kVariesHeight) height_ = tile.sub_blocks;
    if constexpr (kPauses<Tile, Format>) k_blocks_ = tile.k_blocks;
    if constexpr (kHelps<Tile, Format>) is_helped_ = is_helped<Tile, Format>(tile);
    return tile.expert >= 0;
  }

  // Whether this warpgroup multiplies k blocks of the tile for the first one, which has the outputs.
  __device__ __forceinline__ bool helps() const {
    return kHelps<Tile, Format> && is_helped_ && warpgroup_ > 0;
  }

  // The same again.
  __device__ __forceinline__ TileCoordinates tile() const {
    return *static_cast<const TileCoordinates*>(__cvta_shared_to_generic(listed_));
  }

  // Empties the ring for a tile that has no outputs for this warpgroup; false where it has.
  __device__ __forceinline__ bool skips(const TileCoordinates& tile) {
    if constexpr (Tile::kVariesHeight) {
      if (warpgroup_ < tile.sub_blocks || helps()) return false;
      for (int k = 0; k < k_blocks_; ++k) {
        ptx::mbarrier_wait(&shared_.full[ring_.stage], ring_.parity);
        __syncwarp();  // all lanes have seen the barrier, and which tile it is
        release(ring_.stage);
        ring_.advance();
      }
      return true;
    }
    return false;
  }

  // Calls `use` with the warpgroup's sums over in_features for the tile's tokens, still in the fixed exponent of
  // Format::kFactor. Where they do not begin with zeros, `resume` sets them.
  template <class Resume, class Use>
  __device__ __forceinline__ void run(int num_tokens, bool begins, Resume resume, Use use) {
    const int width = width_of<Tile>(num_tokens).tokens;
    Operands operands;
    if constexpr (kSharesFragments) prepare(operands);
    if constexpr (kHasSumsByWidth) {
      with_width<Tile::kTokens>(width, [&](auto constant) {
        constexpr int kWidth = decltype(constant)::value, kBelow = Tile::Widths::below(kWidth);
        constexpr bool kShares = Tile::is_between(kBelow);
        Sums<kWidth> sums;
        clear<kWidth>(sums);
        if (!begins) resume(sums);
        if (kShares && width == kBelow) {
          run_width<kShares ? kBelow : kWidth>(sums, operands);
        } else {
          run_width<kWidth>(sums, operands);
        }
        use(sums);
      });
    } else {
      WidestSums sums;
      if (!begins) {
        clear<Tile::kTokens>(sums);
        resume(sums);
      }
      with_width<Tile::kTokens>(width, [&](auto constant) {
        constexpr int kWidth = decltype(constant)::value;
        if (begins) clear<kCleared<kWidth>>(sums);
        run_width<kWidth>(sums, operands);
      });
      use(sums);
    }
  }

 private:
  // Whether each width has sums of its own, and code of its own for all that is done with them: narrow tiles then stage
  // less (kernel-log.md, run 176). Gated large tiles lose by it (run 179), and medium ones, which have eight widths (runs
  // 170 and 172).
  static constexpr bool kHasSumsByWidth = Tile::kTurnsSums;
  // Whether what wgmma reads is in the same registers whatever the width (share_registers): where registers are short.
  static constexpr bool kSharesFragments =
      kHasSumsByWidth || (Tile::kSplits && Format::kSummation == Summation::kCarried);

  struct Packed {
    PackedWords words;
    typename Format::RowScales scales;
    float scale[2];  // of rows g and g + 8, where sums are multiplied by them
  };
  struct Fragments {
    Fragment a[kStepsPerBlock];
  };
  // Of the k blocks that are multiplied and prepared by turns.
  struct Operands {
    Packed packed;
    Fragments even, odd;
  };

  // Calls `use` with the tile's width as a constant, or with the next wider one if it is between others.
  template <int kWidth, class Use>
  __device__ __forceinline__ static void with_width(int width, const Use& use) {
    if constexpr (kWidth > Tile::kNarrowest) {
      constexpr int kBelow = Tile::Widths::below(kWidth);
      constexpr int kNext = Tile::is_between(kBelow) ? Tile::Widths::below(kBelow) : kBelow;
      static_assert(!Tile::is_between(kNext), "two others have one width between them, if any");
      if (width <= kNext) return with_width<kNext>(width, use);
    }
    use(std::integral_constant<int, kWidth>());
  }

  template <int kTokens, class Sums>
  __device__ __forceinline__ void clear(Sums& sums) const {
    sums.template clear<kTokens>(kHasScales ? Sums::kNoUnit : most_);
  }

  template <int kWidth, class Sums>
  __device__ __forceinline__ void run_width(Sums& sums, Operands& operands) {
    if constexpr (Format::kSummation == Summation::kPromoted) {
      if (has_short_groups(params_)) return run_by_steps<kWidth>(sums);
    }
    if constexpr (kHelps<Tile, Format>) {
      if (is_helped_) return run_with_help<kWidth>(sums, operands);
    }
    if constexpr (!kSharesFragments) prepare(operands);
    if constexpr (kInPairs<kWidth>) {
      run_by_pairs<kWidth>(sums, operands);
    } else {
      run_by_blocks<kWidth>(sums, operands);
    }
  }

  // Those of the tile's first k block.
  __device__ __forceinline__ void prepare(Operands& operands) const {
    load(operands.packed);
    if constexpr (kFragmentBuffers == 2) {
      dequantise<Tables::kLookedUp>(operands.packed, operands.even);
    }
    if constexpr (kSharesFragments) operands.odd = operands.even;  // anything: share_registers
  }

  // Has a loop begin with fragments that it only sets, and that were set before the choice of a width too: so the loops
  // of all widths have them in the same registers. ptxas by itself has some apart for each loop: with six widths MXFP4
  // then spills (counters.jsonl, run 178).
  __device__ __forceinline__ static void share_registers(Fragments& fragments) {
    if constexpr (kSharesFragments) {
#pragma unroll
      for (Fragment& fragment : fragments.a) {
#pragma unroll
        for (uint32_t& word : fragment) asm volatile("" : "+r"(word));
      }
    }
  }

  // 2: the next k block is dequantised while the tensor cores work on this one. 1: only its packed
  // words are fetched meanwhile; the other warpgroups keep the tensor cores busy.
  static constexpr int kFragmentBuffers = Tile::kConsumers == 4 && Tile::kTokens >= 64 ? 1 : 2;
  static_assert(!kHasSumsByWidth || kSharesFragments);
  static_assert(!kSharesFragments || (kFragmentBuffers == 2 && !kHelps<Tile, Format>),
                "other loops prepare the first k block themselves, or only some of it");
  static_assert(Tile::kDeepWidth == 0 || (kFragmentBuffers == 2 && !Tile::kVariesHeight),
                "other loops take a k block from each stage");
  static constexpr bool kHasScales = Format::kGroupScaling == GroupScaling::kScaled;
  // A stage has two k blocks.
  template <int kWidth>
  static constexpr bool kIsDeep = kWidth <= Tile::kDeepWidth;
  // The products of two k blocks are under way together: with narrow tiles those of one take no longer than
  // the instructions around them, and there are registers for both.
  template <int kWidth>
  static constexpr bool kInPairs =
      Tile::kDeepWidth > 0 && kWidth <= Tile::kTokens / 2 && !WidestSums::kInPlace;
  // The epilogue looks at whole chunks.
  template <int kWidth>
  static constexpr int kCleared =
      (kWidth + Tile::kStagedTokens - 1) / Tile::kStagedTokens * Tile::kStagedTokens;
  template <int kWidth>
  using Group = typename WidestSums::template Group<kWidth>;
  // The barrier of all consumers; the scheduler has the one before.
  static constexpr uint32_t kHandedOver = 2 + Tile::kConsumers;
  using Ring = RingPosition<Tile::kStages>;

  // The tensor cores sum one k block.
  template <int kWidth, class Sums>
  __device__ __forceinline__ void run_by_blocks(Sums& sums, Operands& operands) {
    Packed& packed = operands.packed;
    Fragments &even = operands.even, &odd = operands.odd;
    Group<kWidth> group;
    if constexpr (kFragmentBuffers == 2) {
      for (int k = 0; k < k_blocks_; k += 2) {
        share_registers(odd);
        add_and_prepare<kWidth, 0>(sums, group, even, packed, odd, k);
        if (k + 1 < k_blocks_) add_and_prepare<kWidth, 1>(sums, group, odd, packed, even, k + 1);
      }
    } else {
      for (int k = 0; k < k_blocks_; ++k) {
        dequantise<Tables::kEither>(packed, even);
        add_block<kWidth, 0>(sums, group, even, packed, k, [&] {
          if (k + 1 < k_blocks_) load(packed);
        });
      }
    }
  }

  // The same where each stage has a k block for every warpgroup: the first one adds all their sums, in the order of k
  // blocks. They wait for each other every other stage.
  template <int kWidth, class Sums>
  __device__ __forceinline__ void run_with_help(Sums& sums, Operands& operands) {
    static_assert(kFragmentBuffers == 2);
    const int stages = (k_blocks_ + Storage::kHelpedBlocks - 1) / Storage::kHelpedBlocks;
    const uint32_t first_tokens = first_tokens_;
    first_tokens_ += warpgroup_ * (Storage::kTokenBytes / 16);
    Group<kWidth> group[2];
    float scale[2][2];
    Packed& packed = operands.packed;
    Fragments &even = operands.even, &odd = operands.odd;
    prepare(operands);
#pragma unroll 1
    for (int i = 0; i < stages; i += 2) {
      multiply_and_prepare<kWidth>(group[0], scale[0], even, packed, odd, i + 1 < stages);
      hand_over<kWidth>(0, group[0], scale[0]);
      if (i + 1 < stages) {
        multiply_and_prepare<kWidth>(group[1], scale[1], odd, packed, even, i + 2 < stages);
        hand_over<kWidth>(1, group[1], scale[1]);
      }
      ptx::named_barrier_sync(kHandedOver, Tile::kConsumerThreads);
      if (warpgroup_ == 0) {
        const int left = k_blocks_ - i * Storage::kHelpedBlocks;
        collect<kWidth>(sums, 0, group[0], scale[0], left);
        if (i + 1 < stages) {
          collect<kWidth>(sums, 1, group[1], scale[1], left - Storage::kHelpedBlocks);
        }
      }
      turn_ ^= 1;
    }
    first_tokens_ = first_tokens;
  }

  // The last stage may have no k block for this warpgroup; then it multiplies what lies there, for nobody.
  template <int kWidth>
  __device__ __forceinline__ void multiply_and_prepare(Group<kWidth>& group, float (&scale)[2],
                                                       const Fragments& current, Packed& packed,
                                                       Fragments& next, bool has_next) {
    scale[0] = packed.scale[0], scale[1] = packed.scale[1];
    const int stage = ring_.stage;
    multiply<kWidth, 0>(group, current, stage, false);
    ring_.advance();
    if (has_next) {
      load(packed);
      dequantise<Tables::kLookedUp>(packed, next);
    }
    wgmma_wait<0>();
    keep_in_place(group);
    release(stage);
  }

  // To the first warpgroup, from another one. `stage`: 0 or 1 of this turn.
  template <int kWidth>
  __device__ __forceinline__ void hand_over(int stage, const Group<kWidth>& group,
                                            const float (&scale)[2]) const {
    if (warpgroup_ == 0) return;
    auto& handed = shared_.handed[turn_][stage][warpgroup_ - 1];
    handed.sum[thread_] = make_uint4(group[0], group[1], group[2], group[3]);
    if constexpr (kHasScales) handed.scale[thread_] = make_float2(scale[0], scale[1]);
  }

  // Adds the sums of the stage's k blocks, of which there are `left` or fewer: its own and the others'.
  template <int kWidth, class Sums>
  __device__ __forceinline__ void collect(Sums& sums, int stage, const Group<kWidth>& group,
                                          const float (&scale)[2], int left) const {
    add_group<kWidth>(sums, group, scale);
#pragma unroll
    for (int i = 0; i < Storage::kHelpedBlocks - 1; ++i) {
      if (i + 1 >= left) break;
      const auto& handed = shared_.handed[turn_][stage][i];
      const uint4 sum = handed.sum[thread_];
      float2 its_scale = {};
      if constexpr (kHasScales) its_scale = handed.scale[thread_];
      add_group<kWidth>(sums, {sum.x, sum.y, sum.z, sum.w}, {its_scale.x, its_scale.y});
    }
  }

  // `kOdd`: 1 where k is odd.
  template <int kWidth, int kOdd, class Sums>
  __device__ __forceinline__ void add_and_prepare(Sums& sums, Group<kWidth>& group,
                                                  const Fragments& current, Packed& packed,
                                                  Fragments& next, int k) {
    constexpr int kPlace = kIsDeep<kWidth> ? kOdd : 0, kNextPlace = kIsDeep<kWidth> ? 1 - kOdd : 0;
    add_block<kWidth, kPlace>(sums, group, current, packed, k, [&] {
      if (k + 1 >= k_blocks_) return;
      load<kNextPlace>(packed);
      dequantise<Tile::kIsWide ? Tables::kNear : Tables::kLookedUp>(packed, next);
    });
    // Not beside the products: with a branch there the compiler would wait for each of them.
    if (Tile::kIsWide && packed.scales.has_far()) dequantise<Tables::kLookedUp>(packed, next);
  }

  // `meanwhile` runs beside the products of the k block and may overwrite `packed`. `kPlace`: of the k block
  // in its stage.
  template <int kWidth, int kPlace, class Sums, class Meanwhile>
  __device__ __forceinline__ void add_block(Sums& sums, Group<kWidth>& group,
                                            const Fragments& fragments, const Packed& packed, int k,
                                            Meanwhile meanwhile) {
    const float scale[2] = {packed.scale[0], packed.scale[1]};
    const int stage = ring_.stage;
    const bool ends_stage = !kIsDeep<kWidth> || kPlace == 1 || k + 1 == k_blocks_;
    auto& accumulators = accumulators_of(sums, group);
    multiply<kWidth, kPlace>(accumulators, fragments, stage, WidestSums::kInPlace && k > 0);
    if (ends_stage) ring_.advance();
    meanwhile();
    wgmma_wait<0>();
    keep_in_place(accumulators);
    if (ends_stage) release(stage);
    if constexpr (WidestSums::kInPlace) {
      carry<kWidth>(sums, k + 1);
    } else {
      add_group<kWidth>(sums, group, scale);
    }
  }

  // The same with the products of two k blocks at a time, each k block summed by itself as ever.
  template <int kWidth, class Sums>
  __device__ __forceinline__ void run_by_pairs(Sums& sums, Operands& operands) {
    constexpr int kSecond = kIsDeep<kWidth> ? 1 : 0;  // its place
    Group<kWidth> first, second;
    Packed& packed = operands.packed;
    Fragments &even = operands.even, &odd = operands.odd;
    int k = 0;
#pragma unroll 1
    for (; k + 1 < k_blocks_; k += 2) {
      share_registers(odd);
      const float first_scale[2] = {packed.scale[0], packed.scale[1]};
      const int first_stage = ring_.stage;
      multiply<kWidth, 0>(first, even, first_stage, false);
      if (!kIsDeep<kWidth>) ring_.advance();
      load<kSecond>(packed);
      dequantise<Tables::kLookedUp>(packed, odd);
      const float second_scale[2] = {packed.scale[0], packed.scale[1]};
      const int second_stage = ring_.stage;
      multiply<kWidth, kSecond>(second, odd, second_stage, false);
      ring_.advance();
      wgmma_wait<1>();
      keep_in_place(first);
      if (!kIsDeep<kWidth>) release(first_stage);
      add_group<kWidth>(sums, first, first_scale);
      if (k + 2 < k_blocks_) {
        load(packed);
        dequantise<Tables::kLookedUp>(packed, even);
      }
      wgmma_wait<0>();
      keep_in_place(second);
      release(second_stage);
      add_group<kWidth>(sums, second, second_scale);
    }
    if (k < k_blocks_) add_block<kWidth, 0>(sums, first, even, packed, k, [] {});
  }

  template <int kWidth, class Sums>
  __device__ __forceinline__ void add_group(Sums& sums, const Group<kWidth>& group,
                                            const float (&scale)[2]) const {
    if constexpr (kHasScales) {
      sums.template add<kWidth>(group, scale, most_);
    } else {
      sums.template add<kWidth>(group, most_);
    }
  }

  template <class Sums, class OtherGroup>
  __device__ __forceinline__ static auto& accumulators_of(Sums& sums, OtherGroup& group) {
    if constexpr (WidestSums::kInPlace) {
      return sums.v;
    } else {
      return group;
    }
  }

  // After so many k blocks.
  template <int kWidth, class Sums>
  __device__ __forceinline__ void carry(Sums& sums, int blocks) {
    constexpr int kBlocks = Format::kCarriedBlocks;
    if (blocks % kBlocks == 0 && blocks < k_blocks_) {
      // Other threads may still be reading the rows that were staged here.
      if (blocks == kBlocks) ptx::named_barrier_sync(1 + warpgroup_, 128);
      sums.template carry<kWidth>(carried(), blocks == kBlocks);
    }
    if (blocks == k_blocks_ && blocks > kBlocks) sums.template collect<kWidth>(carried());
  }

  // The epilogue's buffer has nothing to hold yet.
  __device__ __forceinline__ uint2* carried() const {
    static_assert(WidestSums::kCarriedBytes <= sizeof(shared_.staged[0]));
    return reinterpret_cast<uint2*>(shared_.staged[warpgroup_]) + thread_;
  }

  // The tensor cores sum one k step, which is all or half of a short group.
  template <int kWidth, class Sums>
  __device__ __forceinline__ void run_by_steps(Sums& sums) {
    Group<kWidth> group;
    const int steps_per_group = static_cast<int>(params_.group_size / 32);
    const int all_steps = static_cast<int>(params_.in_features / 32);
    Fragments fragments;
    for (int k = 0; k < k_blocks_; ++k) {
      fetch(fragments);
      const int steps = min(kStepsPerBlock, all_steps - k * kStepsPerBlock);
#pragma unroll
      for (int step = 0; step < kStepsPerBlock; ++step) {
        if (step >= steps) break;  // beyond in_features there are no scales
        wgmma_fence();
        multiply_step<kWidth, 0>(group, fragments, step, ring_.stage, false);
        wgmma_commit();
        wgmma_wait<0>();
        keep_in_place(group);
        add_step<kWidth>(sums, group, step / steps_per_group);
      }
      release(ring_.stage);
      ring_.advance();
    }
  }

  // This warp multiplies 16 rows of the stage: a quarter of a sub-block, its warpgroup the other
  // quarters. With a gated activation, whose gates are the first half of the sub-blocks, two warps
  // make gates and the other two what these let through, for the same 32 features.
  __device__ __forceinline__ int sub_block() const {
    if constexpr (!Format::kIsGated) return warpgroup_;
    return warpgroup_ / 2 + thread_ / 64 * (height_ / 2);
  }
  __device__ __forceinline__ int thread_of_sub_block() const {
    if constexpr (!Format::kIsGated) return thread_;
    return warpgroup_ % 2 * 64 + thread_ % 64;
  }
  // Output row, in the stage, of this thread's first accumulator; the other is + 8.
  __device__ __forceinline__ int first_row() const {
    const int thread = thread_of_sub_block();
    return sub_block() * static_cast<int>(kSubBlockOut) + thread / 32 * 16 + thread % 32 / 4;
  }

  // Waits for the stage, unless that was done for its first k block, and takes this thread's packed words and
  // scales.
  template <int kPlace = 0>
  __device__ __forceinline__ void load(Packed& packed) const {
    if constexpr (kPlace == 0) ptx::mbarrier_wait(&shared_.full[ring_.stage], ring_.parity);
    const uint8_t* const weight = shared_.weight_of(ring_.stage, kPlace);
    packed.words.load(weight + sub_block() * kSubBlockBytes, thread_of_sub_block());
    packed.scales.load(shared_.scale_of(ring_.stage, kPlace), first_row());
    if constexpr (kHasScales) {
      packed.scale[0] = scale_at<kPlace>(first_row());
      packed.scale[1] = scale_at<kPlace>(first_row() + 8);
    }
  }

  template <Tables kTables>
  __device__ __forceinline__ void dequantise(const Packed& packed, Fragments& fragments) const {
    Format::template dequantise<kStepsPerBlock / kFragmentBuffers, kTables>(
        packed.words, packed.scales, shared_.e2m1_table, fragments.a);
  }

  __device__ __forceinline__ void fetch(Fragments& fragments) const {
    Packed packed;
    load(packed);
    dequantise<Tables::kLookedUp>(packed, fragments);
  }

  // Starts the products of one k block.
  template <int kWidth, int kPlace, class Accumulators>
  __device__ __forceinline__ void multiply(Accumulators& sums, const Fragments& fragments,
                                           int stage, bool accumulate) const {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kStepsPerBlock; ++step) {
      multiply_step<kWidth, kPlace>(sums, fragments, step, stage, accumulate || step > 0);
    }
    wgmma_commit();
  }

  template <int kWidth, int kPlace, class Accumulators>
  __device__ __forceinline__ void multiply_step(Accumulators& sums, const Fragments& fragments,
                                                int step, int stage, bool accumulate) const {
    constexpr int kPlaceBytes = kPlace * kWidth * static_cast<int>(kSubBlockIn);
    const uint32_t place =
        first_tokens_ + stage * (Storage::kStageTokenBytes / 16) + kPlaceBytes / 16 + 2 * step;
    wgmma<kWidth, typename Format::Element>(sums, fragments.a[step], token_tile_at(place),
                                            accumulate);
  }

  // `row`: of the step's group in the stage.
  template <int kWidth, class Sums>
  __device__ __forceinline__ void add_step(Sums& sums, const Group<kWidth>& group, int row) const {
    const int out = row * Tile::kOut + first_row();
    const float scale[2] = {scale_at<0>(out), scale_at<0>(out + 8)};
    sums.template add<kWidth>(group, scale, most_);
  }

  template <int kPlace>
  __device__ __forceinline__ float scale_at(int index) const {
    if constexpr (Format::kSummation == Summation::kPromoted) {
      if (params_.group_scale_type == GroupScaleType::kNone) return 1.0f;
    }
    const uint8_t* scales = shared_.scale_of(ring_.stage, kPlace);
    if (params_.group_scale_type == GroupScaleType::kBFloat16) {
      const uint32_t bits = reinterpret_cast<const uint16_t*>(scales)[index];
      return __uint_as_float(bits << 16);
    }
    return reinterpret_cast<const float*>(scales)[index];
  }

  // Gives a stage back to the producers that fill it: every block of the cluster sends tokens here.
  __device__ __forceinline__ void release(int stage) const {
    if (thread_ % 32 != 0) return;
    if constexpr (Tile::kCluster == 1) {
      ptx::mbarrier_arrive(&shared_.empty[stage]);
    } else {
#pragma unroll
      for (int rank = 0; rank < Tile::kCluster; ++rank) {
        ptx::mbarrier_arrive_cluster(&shared_.empty[stage], rank);
      }
    }
  }

  Storage& shared_;
  const GroupGemmParams& params_;
  const int thread_, warpgroup_;
  int k_blocks_;                   // of the tile, or its part
  const float most_;               // see HalfSums
  int height_ = Tile::kSubBlocks;  // of the tile, in sub-blocks
  bool is_helped_ = false;         // the tile (storage.cuh)
  int turn_ = 0;                   // of `handed`
  uint32_t first_tokens_;          // place of the first stage's (wgmma.cuh)
  uint32_t listed_;  // the tile's address in the list, which begins at a multiple of its size
  Ring ring_;
};

}  // namespace w4afp8
