// SPDX-License-Identifier: Apache-2.0
// Tensor maps: how the copy engine reads a matrix in device memory into swizzled tiles.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <optional>

#include "plugin/ops/grouped/grouped_cuda.h"

namespace autoep::ops::cuda {

inline constexpr int kTileDepth = 64;        // 16-bit values: one swizzled row of 128 bytes
inline constexpr int kTileWeightRows = 128;  // weight rows in a tile

// Reads kTileWeightRows weight rows of one slot. Of a gated weight, 8 gate rows and the 8 up rows that belong to them follow each
// other. Coordinates: depth, 0, 0, group of 8 output columns, slot. Past the ends it reads zeros. by_two: boxes that are
// neighbours along the depth are asked for together.
std::optional<CUtensorMap> WeightMap(const GroupedProduct& product, bool by_two);

// Reads kTileDepth by kTileDepth of a weight that lies across. Coordinates: output column, depth, slot.
std::optional<CUtensorMap> AcrossMap(const GroupedProduct& product);

// Reads `box` rows of product.in. Coordinates: depth, row.
std::optional<CUtensorMap> RowMap(const GroupedProduct& product, uint32_t box);

// Of a matrix whose rows lie `pitch` values apart, some rows that follow each other are a group: what lies past its end is read as
// zeros and not written, though the matrix goes on there. One dimension ends where the group does; another, which starts elsewhere,
// takes the difference back modulo 2^64.
inline constexpr int kGroupEnd = 1 << 30;

// Copies box_columns (32 or 64) columns of box_rows rows. Coordinates of row r of a group [begin, end): column,
// kGroupEnd - (end - begin) + r, end, kGroupEnd.
std::optional<CUtensorMap> GroupMap(RowType type, const void* data, int64_t columns, int64_t pitch, uint32_t box_columns,
                                    uint32_t box_rows);

}  // namespace autoep::ops::cuda
