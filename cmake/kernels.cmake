# asymkv_compile_kernels(TARGET): compiles the kernels once, as one unit of TARGET, which links asymkv::asymkv, instead of
# in every unit of TARGET and of what links to it. All of them must have the same -m flags.
function(asymkv_compile_kernels TARGET)
  set(UNIT ${CMAKE_CURRENT_BINARY_DIR}/${TARGET}_kernels.cpp)
  file(CONFIGURE OUTPUT ${UNIT} CONTENT "#define ASYMKV_COMPILE_KERNELS\n#include <asymkv/asymkv.hpp>\n")
  set_source_files_properties(${UNIT} PROPERTIES SKIP_PRECOMPILE_HEADERS ON SKIP_UNITY_BUILD_INCLUSION ON)
  target_sources(${TARGET} PRIVATE ${UNIT})
  target_compile_definitions(${TARGET} PUBLIC ASYMKV_COMPILED_KERNELS)
endfunction()
