# The part that the consumer projects share: compiles PROGRAMS, each with the kernels as a unit of their own, and without
# exceptions and RTTI, and registers each as a test.
enable_testing()
foreach(program IN LISTS PROGRAMS)
  get_filename_component(name ${program} NAME_WE)
  foreach(target ${name} ${name}_bare)
    add_executable(${target} ${program})
    target_link_libraries(${target} PRIVATE asymkv::asymkv)
    add_test(NAME ${target} COMMAND ${target})
  endforeach()
  asymkv_compile_kernels(${name})
  target_compile_options(${name}_bare PRIVATE -fno-exceptions -fno-rtti)
endforeach()
