// SPDX-License-Identifier: Apache-2.0
// Tensor maps, made by the driver's own function, which the runtime finds for us: nothing links libcuda.
#include <cuda_runtime_api.h>

#include "plugin/ops/device_cuda.h"
#include "plugin/ops/grouped/tensor_map.h"

namespace autoep::ops::cuda {
namespace {

constexpr uint32_t kMostDimensions = 5;
constexpr uint64_t kBytes = 2;  // of a value

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode FindEncode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  constexpr unsigned kVersion = 12000;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kVersion, cudaEnableDefault, &found) != cudaSuccess ||
      found != cudaDriverEntryPointSuccess) {
    return nullptr;
  }
  return reinterpret_cast<Encode>(function);
}

// strides in bytes, of all dimensions but the first.
std::optional<CUtensorMap> Make(RowType type, const void* data, uint32_t dimensions, const uint64_t* sizes, const uint64_t* strides,
                                const uint32_t* box, CUtensorMapL2promotion promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B) {
  static const Encode encode = FindEncode();
  if (encode == nullptr) return std::nullopt;
  constexpr uint32_t kDense[kMostDimensions] = {1, 1, 1, 1, 1};
  CUtensorMap map;
  const CUtensorMapDataType data_type = type == RowType::kHalf ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  // A row of the box is as wide as the pattern.
  const auto swizzle = box[0] * kBytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B;
  const CUresult result = encode(&map, data_type, dimensions, const_cast<void*>(data), sizes, strides, box, kDense,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? std::optional(map) : std::nullopt;
}

}  // namespace

std::optional<CUtensorMap> WeightMap(const GroupedProduct& product, bool by_two) {
  const uint64_t depth = product.depth;
  const uint64_t columns = product.columns;
  const uint32_t halves = product.gated() ? 2 : 1;
  const uint64_t row = depth * kBytes;
  const uint64_t sizes[] = {depth, 8, halves, columns / 8, static_cast<uint64_t>(product.slots)};
  const uint64_t strides[] = {row, columns * row, 8 * row, halves * columns * row};
  const uint32_t box[] = {kTileDepth, 8, halves, kTileWeightRows / 8 / halves, 1};
  // Told by its way to the memory, 6016 bits where an H100 has 5120: by 128 bytes an H200 reads them 1 to 3 % faster, an H100 2 to
  // 4 % slower.
  const bool narrow = by_two && DeviceHas<cudaDevAttrGlobalMemoryBusWidth, 6000>();
  return Make(product.type, product.weight, 5, sizes, strides, box,
              narrow ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B : CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
}

std::optional<CUtensorMap> AcrossMap(const GroupedProduct& product) {
  const uint64_t row = product.columns * kBytes;
  const uint64_t sizes[] = {static_cast<uint64_t>(product.columns), static_cast<uint64_t>(product.depth),
                            static_cast<uint64_t>(product.slots)};
  const uint64_t strides[] = {row, product.depth * row};
  const uint32_t box[] = {kTileDepth, kTileDepth, 1};
  return Make(product.type, product.weight, 3, sizes, strides, box);
}

std::optional<CUtensorMap> RowMap(const GroupedProduct& product, uint32_t box_rows) {
  const uint64_t sizes[] = {static_cast<uint64_t>(product.depth), static_cast<uint64_t>(product.in_rows)};
  const uint64_t strides[] = {product.depth * kBytes};
  const uint32_t box[] = {kTileDepth, box_rows};
  return Make(product.type, product.in, 2, sizes, strides, box);
}

std::optional<CUtensorMap> GroupMap(RowType type, const void* data, int64_t columns, int64_t pitch, uint32_t box_columns,
                                    uint32_t box_rows) {
  const uint64_t row = pitch * kBytes;
  constexpr uint64_t kWrap = uint64_t{1} << 34;  // times kGroupEnd: 2^64
  static_assert(kWrap * kGroupEnd == 0);
  const uint64_t sizes[] = {static_cast<uint64_t>(columns), kGroupEnd, uint64_t{1} << 31, uint64_t{1} << 31};
  const uint64_t strides[] = {row, row, kWrap - row};
  const uint32_t box[] = {box_columns, box_rows, 1, 1};
  return Make(type, data, 4, sizes, strides, box);
}

}  // namespace autoep::ops::cuda
