# asymkv::yaml: asymkv with yaml-cpp, for asymkv/yaml/kvtuner.hpp. Offered where yaml-cpp is installed, else it does not
# exist. Used by our build and by find_package(asymkv), in the directory that calls.
macro(asymkv_offer_yaml)
  if(NOT TARGET yaml-cpp::yaml-cpp AND NOT TARGET yaml-cpp)
    find_package(yaml-cpp QUIET)
  endif()
  if(NOT TARGET asymkv::yaml AND (TARGET yaml-cpp::yaml-cpp OR TARGET yaml-cpp))
    add_library(asymkv::yaml INTERFACE IMPORTED GLOBAL)
    # 0.7 of Debian 12 has the plain name alone, 0.8 warns of it
    set_target_properties(
      asymkv::yaml
      PROPERTIES INTERFACE_LINK_LIBRARIES
                 "asymkv::asymkv;$<IF:$<TARGET_EXISTS:yaml-cpp::yaml-cpp>,yaml-cpp::yaml-cpp,yaml-cpp>")
  endif()
endmacro()
