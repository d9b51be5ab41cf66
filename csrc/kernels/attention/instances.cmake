# Every CUDA kernel of the library. A line and a head_dim (and a mode of P V) make one translation unit from
# instance.cu.in, compiled by nvcc for the architectures of its family and, for the emulator, by g++.
#
# family | name | header | functor | Params | head dims | modes of P V
# head_dim is padded to one of those of its family. A family's architectures are those that its code runs on.
set(SAGE_FAMILIES sm80)
set(SAGE_ARCHITECTURES_sm80 80 86 87 89)
set(SAGE_KERNELS
  "sm80 | kv_stats     | quantize/kv_stats.cuh     | KvStats       | QuantizeParams | 64 128 256 | -"
  "sm80 | quantize_qkv | quantize/quantize_qkv.cuh | QuantizeQkv   | QuantizeParams | 64 128 256 | -"
  "sm80 | sm80_fwd     | attention/sm80_fwd.cuh    | sm80::AttnFwd | AttnParams     | 64 128 256 | f16 bf16 f16acc f16acc_f32 int8")

# Template argument | what it serves: recipe fields pv and pv_accum, and the format of 16-bit P and V.
set(SAGE_MODE_f16        "sm80::Pv::kF16          | PvFormat::kFp16, PvAccum::kFp32, DType::kFloat16")
set(SAGE_MODE_bf16       "sm80::Pv::kBf16         | PvFormat::kFp16, PvAccum::kFp32, DType::kBFloat16")
set(SAGE_MODE_f16acc     "sm80::Pv::kF16AccF16    | PvFormat::kFp16, PvAccum::kFp16, DType::kFloat16")
set(SAGE_MODE_f16acc_f32 "sm80::Pv::kF16AccF16F32 | PvFormat::kFp16, PvAccum::kFp16Fp32, DType::kFloat16")
set(SAGE_MODE_int8       "sm80::Pv::kInt8         | PvFormat::kInt8, PvAccum::kInt32, DType::kFloat16")

function(sage_columns line prefix)  # sets <prefix>_0, <prefix>_1, ... to the columns of a line
  string(REGEX REPLACE " *\\| *" ";" columns "${line}")
  set(i 0)
  foreach(column IN LISTS columns)
    set(${prefix}_${i} "${column}" PARENT_SCOPE)
    math(EXPR i "${i} + 1")
  endforeach()
endfunction()

# Writes the translation units with the file name ending `extension` to `folder`, and the table of the kernels to
# api/instances.h in the include folder `generated`. Sets `result` to the units' paths.
function(sage_generate_instances folder extension generated architectures result)
  set(declarations "")
  set(rows "")
  set(units "")
  set(num_rows 0)
  foreach(line IN LISTS SAGE_KERNELS)
    sage_columns("${line}" column)
    string(REPLACE " " ";" head_dims "${column_5}")
    string(REPLACE " " ";" modes "${column_6}")
    foreach(head_dim IN LISTS head_dims)
      foreach(mode IN LISTS modes)
        set(instance_name "${column_1}_d${head_dim}")
        set(instance_kernel "${column_3}<${head_dim}>")
        if(NOT mode STREQUAL "-")
          sage_columns("${SAGE_MODE_${mode}}" mode)
          set(instance_name "${column_1}_${mode}_d${head_dim}")
          set(instance_kernel "${column_3}<${head_dim}, ${mode_0}>")
          string(APPEND rows "    {${head_dim}, ${mode_1}, kv_stats_d${head_dim}, quantize_qkv_d${head_dim}, "
            "${instance_name}},\n")
          math(EXPR num_rows "${num_rows} + 1")
        endif()
        set(instance_header "${column_2}")
        set(instance_params "${column_4}")
        configure_file(kernels/attention/instance.cu.in ${folder}/${instance_name}.${extension} @ONLY)
        list(APPEND units ${folder}/${instance_name}.${extension})
        string(APPEND declarations "extern arch::CompiledKernel<${instance_params}> const ${instance_name};\n")
      endforeach()
    endforeach()
  endforeach()
  sage_write_table("${generated}" "${declarations}" "${rows}" ${num_rows} "${architectures}")
  set(${result} "${units}" PARENT_SCOPE)
endfunction()

# api/instances.h; without CUDA the table is empty.
function(sage_write_table generated declarations rows num_rows architectures)
  list(LENGTH architectures num_architectures)
  list(JOIN architectures ", " architectures)
  configure_file(api/instances.h.in ${generated}/api/instances.h @ONLY)
endfunction()
