// The names of a recipe's formats, in messages and in Python.
#pragma once
#include "sage/recipe.h"

namespace sage {

template <class T>
struct Named {
  char const* name;
  T value;
};

inline constexpr Named<QkFormat> kQkFormats[] = {
    {"int8", QkFormat::kInt8}, {"int4", QkFormat::kInt4}, {"int16", QkFormat::kInt16}, {"nvfp4", QkFormat::kNvfp4}};
inline constexpr Named<PvFormat> kPvFormats[] = {{"fp16", PvFormat::kFp16},
                                                 {"int8", PvFormat::kInt8},
                                                 {"int16", PvFormat::kInt16},
                                                 {"fp8_e4m3", PvFormat::kFp8E4m3},
                                                 {"nvfp4", PvFormat::kNvfp4}};

inline constexpr Named<QkGranularity> kQkGranularities[] = {{"token", QkGranularity::kToken},
                                                            {"thread", QkGranularity::kThread},
                                                            {"warp", QkGranularity::kWarp},
                                                            {"block", QkGranularity::kBlock},
                                                            {"1x16", QkGranularity::k1x16}};
inline constexpr Named<PvAccum> kPvAccums[] = {{"fp32", PvAccum::kFp32},
                                               {"fp16", PvAccum::kFp16},
                                               {"fp16+fp32", PvAccum::kFp16Fp32},
                                               {"fp32+fp32", PvAccum::kFp32Fp32},
                                               {"int32", PvAccum::kInt32}};

inline constexpr Named<KeyOrder> kKeyOrders[] = {{"forward", KeyOrder::kForward}, {"reverse", KeyOrder::kReverse}};

template <class T, int N>
char const* name_of(T value, Named<T> const (&names)[N]) {
  for (Named<T> const& named : names)
    if (named.value == value) return named.name;
  return "unknown";
}

}  // namespace sage
