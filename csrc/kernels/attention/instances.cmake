# Every CUDA kernel of the library. A line, a head_dim and a mode make one translation unit from instance.cu.in, compiled
# by nvcc for architectures of its family and, for the emulator, by g++. Where several serve a problem, the first does.
#
# family | name | header | functor | Params | head dims | quantizer | modes
# head_dim is padded to one of those of its family. An attention kernel names the quantizer of its operands.
set(SAGE_KERNELS
  "sm80      | kv_stats       | quantize/kv_stats.cuh       | KvStats           | QuantizeParams | 64 128 256 | -              | -"
  "sm80      | quantize_qkv   | quantize/quantize_qkv.cuh   | QuantizeQkv       | QuantizeParams | 64 128 256 | -              | -"
  "sm120_fp4 | quantize_nvfp4 | quantize/quantize_nvfp4.cuh | QuantizeNvfp4     | QuantizeParams | 64 128     | -              | -"
  "sm80      | sm80_fwd       | attention/sm80_fwd.cuh      | sm80::AttnFwd     | AttnParams     | 64 128 256 | quantize_qkv   | f16 bf16 f16acc f16acc_f32 int8 int4_f16 int4_bf16"
  "sm120     | sm120_fwd      | attention/sm120_fwd.cuh     | sm120::AttnFwd    | AttnParams     | 64 128 256 | quantize_qkv   | mxfp8"
  "sm120_fp4 | sm120_fp4_fwd  | attention/sm120_fp4_fwd.cuh | sm120::Fp4AttnFwd | AttnParams     | 64 128     | quantize_nvfp4 | nvfp4 fp8"
  "sm90      | sm90_fwd       | attention/sm90_fwd.cuh      | sm90::AttnFwd     | AttnParams     | 64 128 256 | quantize_qkv   | wgmma wgmma_approx"
  "sm89      | sm89_fwd       | attention/sm89_fwd.cuh      | sm89::AttnFwd     | AttnParams     | 64 128 256 | quantize_qkv   | fp8 fp8_f16acc int4_fp8 int4_fp8_f16acc")

# SAGE_MODE_<name>_<mode>: template argument | what it serves: recipe fields qk, pv and pv_accum, and the format of 16-bit P
# and V; how it wants its operands; recipe field approximate_exp | what it needs of a GPU besides its family's instructions.
set(SAGE_MODE_sm80_fwd_f16             "sm80::Mode::kF16            | QkFormat::kInt8,  PvFormat::kFp16,    PvAccum::kFp32,     DType::kFloat16,  OperandOrder::kMmaSync,     false | -")
set(SAGE_MODE_sm80_fwd_bf16            "sm80::Mode::kBf16           | QkFormat::kInt8,  PvFormat::kFp16,    PvAccum::kFp32,     DType::kBFloat16, OperandOrder::kMmaSync,     false | -")
set(SAGE_MODE_sm80_fwd_f16acc          "sm80::Mode::kF16AccF16      | QkFormat::kInt8,  PvFormat::kFp16,    PvAccum::kFp16,     DType::kFloat16,  OperandOrder::kMmaSync,     false | -")
set(SAGE_MODE_sm80_fwd_f16acc_f32      "sm80::Mode::kF16AccF16F32   | QkFormat::kInt8,  PvFormat::kFp16,    PvAccum::kFp16Fp32, DType::kFloat16,  OperandOrder::kMmaSync,     false | -")
set(SAGE_MODE_sm80_fwd_int8            "sm80::Mode::kInt8           | QkFormat::kInt8,  PvFormat::kInt8,    PvAccum::kInt32,    DType::kFloat16,  OperandOrder::kMmaSync,     false | int8_pv")
set(SAGE_MODE_sm80_fwd_int4_f16        "sm80::Mode::kInt4F16        | QkFormat::kInt4,  PvFormat::kFp16,    PvAccum::kFp32,     DType::kFloat16,  OperandOrder::kMmaSync,     false | int4")
set(SAGE_MODE_sm80_fwd_int4_bf16       "sm80::Mode::kInt4Bf16       | QkFormat::kInt4,  PvFormat::kFp16,    PvAccum::kFp32,     DType::kBFloat16, OperandOrder::kMmaSync,     false | int4")
set(SAGE_MODE_sm89_fwd_fp8             "sm89::Mode::kFp8            | QkFormat::kInt8,  PvFormat::kFp8E4m3, PvAccum::kFp32Fp32, DType::kFloat16,  OperandOrder::kMmaSync,     false | -")
set(SAGE_MODE_sm89_fwd_fp8_f16acc      "sm89::Mode::kFp8F16Acc      | QkFormat::kInt8,  PvFormat::kFp8E4m3, PvAccum::kFp16Fp32, DType::kFloat16,  OperandOrder::kMmaSync,     false | -")
set(SAGE_MODE_sm89_fwd_int4_fp8        "sm89::Mode::kInt4Fp8        | QkFormat::kInt4,  PvFormat::kFp8E4m3, PvAccum::kFp32Fp32, DType::kFloat16,  OperandOrder::kMmaSync,     false | int4")
set(SAGE_MODE_sm89_fwd_int4_fp8_f16acc "sm89::Mode::kInt4Fp8F16Acc  | QkFormat::kInt4,  PvFormat::kFp8E4m3, PvAccum::kFp16Fp32, DType::kFloat16,  OperandOrder::kMmaSync,     false | int4")
set(SAGE_MODE_sm120_fwd_mxfp8          "sm120::Mode::kMxfp8         | QkFormat::kInt8,  PvFormat::kFp8E4m3, PvAccum::kFp32,     DType::kFloat16,  OperandOrder::kMmaSync,     false | -")
set(SAGE_MODE_sm90_fwd_wgmma           "sm90::Mode::kExact          | QkFormat::kInt8,  PvFormat::kFp8E4m3, PvAccum::kFp32Fp32, DType::kFloat16,  OperandOrder::kWgmma,       false | -")
set(SAGE_MODE_sm90_fwd_wgmma_approx    "sm90::Mode::kApproximateExp | QkFormat::kInt8,  PvFormat::kFp8E4m3, PvAccum::kFp32Fp32, DType::kFloat16,  OperandOrder::kWgmma,       true  | -")
set(SAGE_MODE_sm120_fp4_fwd_nvfp4      "sm120::Fp4Mode::kNvfp4      | QkFormat::kNvfp4, PvFormat::kNvfp4,   PvAccum::kFp32,     DType::kFloat16,  OperandOrder::kBlockScaled, false | -")
set(SAGE_MODE_sm120_fp4_fwd_fp8        "sm120::Fp4Mode::kFp8        | QkFormat::kNvfp4, PvFormat::kFp8E4m3, PvAccum::kFp32,     DType::kFloat16,  OperandOrder::kBlockScaled, false | -")

# The architectures for which a family is meant, ascending. INT4 tensor cores went with sm_90: ptxas emulates them there.
set(SAGE_ARCHITECTURES_sm80 80 86 87 89 90 120)
set(SAGE_ARCHITECTURES_sm89 89 120)
set(SAGE_ARCHITECTURES_sm90 90)
set(SAGE_ARCHITECTURES_sm120 120)
set(SAGE_ARCHITECTURES_sm120_fp4 120)
set(SAGE_ARCHITECTURES_int4 80 86 87 89)
# INT8 P V takes more registers on sm_90 than there are.
set(SAGE_ARCHITECTURES_int8_pv 80 86 87 89 120)
# Those with shared memory for head_dim 256 and 16-bit V, and those that share their code.
set(SAGE_ARCHITECTURES_large_v 80 86 87 89 90)
# Whose instructions only one architecture has: their code is for 90a and 120a.
set(SAGE_SPECIFIC_FAMILIES sm90 sm120 sm120_fp4)

# Of a family alone. sm120: ptxas -O3 moves loads of V to where no registers are left for them, and spills.
set(SAGE_NVCC_OPTIONS_sm120 -Xptxas=-O2)
# Brings in wgmma with N = head_dim + 8, which CUTLASS leaves out of its headers for their size.
set(SAGE_DEFINITIONS_sm90 CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED)

function(sage_columns line prefix)  # sets <prefix>_0, <prefix>_1, ... to the columns of a line
  string(REGEX REPLACE " *\\| *" ";" columns "${line}")
  set(i 0)
  foreach(column IN LISTS columns)
    set(${prefix}_${i} "${column}" PARENT_SCOPE)
    math(EXPR i "${i} + 1")
  endforeach()
endfunction()

# Sets `result` to what a kernel is compiled for, as 80, 120 or 120a: those of `architectures` that its family and what it
# `needs` are listed for, without those that code for a lower one serves (of the same major number; Tegra's 87 shares with
# none). Then `extra`, whatever it is listed for, if it is not older than the family and has its instructions and the shared
# memory.
function(sage_targets family needs architectures extra result)
  set(targets "")
  set(served "")
  list(SORT architectures COMPARE NATURAL)
  foreach(architecture IN LISTS architectures)
    string(REGEX REPLACE ".$" "" major "${architecture}")
    set(listed ${SAGE_ARCHITECTURES_${family}})
    if(NOT needs STREQUAL "-" AND NOT architecture IN_LIST SAGE_ARCHITECTURES_${needs})
      set(listed "")
    endif()
    if(architecture IN_LIST listed AND (architecture EQUAL 87 OR NOT major IN_LIST served))
      list(APPEND targets ${architecture})
      if(NOT architecture EQUAL 87)
        list(APPEND served ${major})
      endif()
    endif()
  endforeach()
  list(GET SAGE_ARCHITECTURES_${family} 0 oldest)
  if(extra AND extra GREATER_EQUAL oldest AND NOT (needs STREQUAL "large_v" AND extra GREATER_EQUAL 120))
    math(EXPR next_major "(${oldest} / 10 + 1) * 10")
    if(extra LESS next_major OR NOT family IN_LIST SAGE_SPECIFIC_FAMILIES)
      list(APPEND targets ${extra})
      list(REMOVE_DUPLICATES targets)
    endif()
  endif()
  if(family IN_LIST SAGE_SPECIFIC_FAMILIES)
    list(TRANSFORM targets APPEND "a")
  endif()
  set(${result} "${targets}" PARENT_SCOPE)
endfunction()

# Writes the translation units with the file name ending `extension` to `folder`, and the table of the kernels to
# api/instances.h in the include folder `generated`. The units of a family that are compiled for the same targets are a
# group: sets <prefix>_GROUPS to their names and, for each, <prefix>_UNITS_<group> to paths, <prefix>_TARGETS_<group> and
# <prefix>_FAMILY_<group>; <prefix>_ARCHITECTURES to the numbers of all targets. The name of a group ends in "_emulated"
# where tensor cores lack an instruction, for which ptxas then takes registers that are not there: it may spill.
function(sage_generate_instances folder extension generated architectures extra prefix)
  set(declarations "")
  set(rows "")
  set(num_rows 0)
  set(groups "")
  set(all_architectures "")
  foreach(line IN LISTS SAGE_KERNELS)
    sage_columns("${line}" column)
    string(REPLACE " " ";" head_dims "${column_5}")
    string(REPLACE " " ";" modes "${column_7}")
    foreach(head_dim IN LISTS head_dims)
      foreach(mode IN LISTS modes)
        set(instance_name "${column_1}_d${head_dim}")
        set(instance_kernel "${column_3}<${head_dim}>")
        set(mode_1 "")
        set(mode_2 "-")
        if(NOT mode STREQUAL "-")
          sage_columns("${SAGE_MODE_${column_1}_${mode}}" mode)
          set(instance_name "${column_1}_${mode}_d${head_dim}")
          set(instance_kernel "${column_3}<${head_dim}, ${mode_0}>")
        endif()
        if(head_dim EQUAL 256 AND mode_2 STREQUAL "-" AND mode_1 MATCHES "PvFormat::kFp16")
          set(mode_2 "large_v")
        endif()
        sage_targets(${column_0} "${mode_2}" "${architectures}" "${extra}" targets)
        if(NOT targets)
          continue()
        endif()
        set(instance_header "${column_2}")
        set(instance_params "${column_4}")
        configure_file(kernels/attention/instance.cu.in ${folder}/${instance_name}.${extension} @ONLY)
        string(APPEND declarations "extern arch::CompiledKernel<${instance_params}> const ${instance_name};\n")
        string(REPLACE ";" "_" group "${column_0};${targets}")
        set(native ${SAGE_ARCHITECTURES_${column_0}})
        if(NOT mode_2 STREQUAL "-" AND NOT mode_2 STREQUAL "large_v")
          set(native ${SAGE_ARCHITECTURES_${mode_2}})
        elseif(column_0 STREQUAL "sm80")
          set(native ${extra})
        endif()
        if(extra IN_LIST targets AND NOT extra IN_LIST native)
          string(APPEND group "_emulated")
        endif()
        list(APPEND groups ${group})
        list(APPEND units_${group} ${folder}/${instance_name}.${extension})
        set(${prefix}_UNITS_${group} "${units_${group}}" PARENT_SCOPE)
        set(${prefix}_TARGETS_${group} "${targets}" PARENT_SCOPE)
        set(${prefix}_FAMILY_${group} ${column_0} PARENT_SCOPE)
        list(TRANSFORM targets REPLACE "a$" "" OUTPUT_VARIABLE numbers)
        list(APPEND all_architectures ${numbers})
        if(NOT mode STREQUAL "-")
          list(TRANSFORM targets REPLACE "^([0-9]+)$" "{\\1, false}")
          list(TRANSFORM targets REPLACE "^([0-9]+)a$" "{\\1, true}")
          list(JOIN targets ", " targets)
          string(APPEND rows "    {${head_dim}, ${mode_1}, kv_stats_d${head_dim}, ${column_6}_d${head_dim}, "
            "${instance_name}, {${targets}}},\n")
          math(EXPR num_rows "${num_rows} + 1")
        endif()
      endforeach()
    endforeach()
  endforeach()
  list(REMOVE_DUPLICATES groups)
  list(REMOVE_DUPLICATES all_architectures)
  list(SORT all_architectures COMPARE NATURAL)
  sage_write_table("${generated}" "${declarations}" "${rows}" ${num_rows} "${all_architectures}")
  set(${prefix}_GROUPS "${groups}" PARENT_SCOPE)
  set(${prefix}_ARCHITECTURES "${all_architectures}" PARENT_SCOPE)
endfunction()

# api/instances.h; without CUDA the table is empty.
function(sage_write_table generated declarations rows num_rows architectures)
  list(LENGTH architectures num_architectures)
  list(JOIN architectures ", " architectures)
  configure_file(api/instances.h.in ${generated}/api/instances.h @ONLY)
endfunction()
