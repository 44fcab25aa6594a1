# asymkv_compile_kernels(TARGET): compiles the kernels once, as one unit of TARGET, which links asymkv::asymkv, instead of
# in every unit of TARGET and of what links to it. All of them must have the same -m flags.
function(asymkv_compile_kernels TARGET)
  asymkv_warn_unoptimised(${TARGET})
  set(UNIT ${CMAKE_CURRENT_BINARY_DIR}/${TARGET}_kernels.cpp)
  file(CONFIGURE OUTPUT ${UNIT} CONTENT "#define ASYMKV_COMPILE_KERNELS\n#include <asymkv/asymkv.hpp>\n")
  set_source_files_properties(${UNIT} PROPERTIES SKIP_PRECOMPILE_HEADERS ON SKIP_UNITY_BUILD_INCLUSION ON)
  target_sources(${TARGET} PRIVATE ${UNIT})
  target_compile_definitions(${TARGET} PUBLIC ASYMKV_COMPILED_KERNELS)
endfunction()

# asymkv_warn_unoptimised(TARGET): CMake's default is a build type without flags, which nobody chose. Says nothing where
# there is a build type, be it Debug, or where the flags or the target's options have an -O.
function(asymkv_warn_unoptimised TARGET)
  get_target_property(OPTIONS ${TARGET} COMPILE_OPTIONS)
  if(NOT CMAKE_BUILD_TYPE
     AND NOT CMAKE_CONFIGURATION_TYPES
     AND NOT "${CMAKE_CXX_FLAGS};${OPTIONS}" MATCHES "(^|[ ;:])-O")
    message(WARNING "asymkv: the kernels of ${TARGET} are not optimised, which makes them 30 times slower, since "
                    "CMAKE_BUILD_TYPE is empty; configure with -DCMAKE_BUILD_TYPE=Release")
  endif()
endfunction()
