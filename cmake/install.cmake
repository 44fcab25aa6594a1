# Install and export: find_package(asymkv) gives asymkv::asymkv.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(ASYMKV_CMAKE_DIR ${CMAKE_INSTALL_DATADIR}/cmake/asymkv)
install(DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/include/asymkv DESTINATION include)
get_target_property(ASYMKV_EIGEN_IMPORTED Eigen3::Eigen IMPORTED)
if(ASYMKV_EIGEN_IMPORTED) # a fetched Eigen belongs to this build and can't be exported
  install(TARGETS asymkv EXPORT asymkvTargets)
  install(EXPORT asymkvTargets NAMESPACE asymkv:: DESTINATION ${ASYMKV_CMAKE_DIR})
  configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/asymkvConfig.cmake.in ${PROJECT_BINARY_DIR}/asymkvConfig.cmake
                                INSTALL_DESTINATION ${ASYMKV_CMAKE_DIR})
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/asymkvConfigVersion.cmake COMPATIBILITY SameMinorVersion
                                   ARCH_INDEPENDENT)
  install(FILES ${PROJECT_BINARY_DIR}/asymkvConfig.cmake ${PROJECT_BINARY_DIR}/asymkvConfigVersion.cmake
          DESTINATION ${ASYMKV_CMAKE_DIR})
endif()
