# Install and export: after it find_package(asymkv) gives asymkv::asymkv. Always defined, since a user's library that
# is exported itself needs it; add_subdirectory(... EXCLUDE_FROM_ALL) leaves it out.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(ASYMKV_CMAKE_DIR ${CMAKE_INSTALL_DATADIR}/cmake/asymkv) # not lib: nothing here depends on the architecture

install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/asymkv DESTINATION include)
install(TARGETS asymkv EXPORT asymkvTargets)
install(EXPORT asymkvTargets NAMESPACE asymkv:: DESTINATION ${ASYMKV_CMAKE_DIR})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/asymkvConfig.cmake.in ${PROJECT_BINARY_DIR}/asymkvConfig.cmake
                              INSTALL_DESTINATION ${ASYMKV_CMAKE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/asymkvConfigVersion.cmake COMPATIBILITY SameMinorVersion
                                 ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/asymkvConfig.cmake ${PROJECT_BINARY_DIR}/asymkvConfigVersion.cmake
              ${CMAKE_CURRENT_LIST_DIR}/kernels.cmake ${CMAKE_CURRENT_LIST_DIR}/yaml.cmake
        DESTINATION ${ASYMKV_CMAKE_DIR})
