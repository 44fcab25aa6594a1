# What the project needs: the system's package where there is one, else a pinned release whose SHA-256 is checked.
# Users of the library need Eigen alone (and yaml-cpp for KVTuner's files); the rest is for tests, benchmarks, examples.
include(FetchContent)

# Eigen is fetched as sources only: its own project would add its tests and options to ours. The target is IMPORTED as
# Debian's is, so it can be named by what asymkv installs.
function(asymkv_find_eigen)
  if(TARGET Eigen3::Eigen)
    return()
  endif()
  find_package(Eigen3 3.4 QUIET NO_MODULE)
  if(NOT TARGET Eigen3::Eigen)
    message(STATUS "asymkv: no Eigen 3.4 found, fetching it")
    FetchContent_Declare(
      asymkv_eigen
      URL https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.gz
      URL_HASH SHA256=8586084f71f9bde545ee7fa6d00288b264a2b7ac3607b974e54d13e7162c1c72
      SOURCE_SUBDIR sources-only)
    FetchContent_MakeAvailable(asymkv_eigen)
    add_library(Eigen3::Eigen INTERFACE IMPORTED)
    target_include_directories(Eigen3::Eigen INTERFACE ${asymkv_eigen_SOURCE_DIR})
  endif()
  # a project that adds this one links asymkv in its own directory and must see Eigen there
  set_target_properties(Eigen3::Eigen PROPERTIES IMPORTED_GLOBAL TRUE)
endfunction()

# package: the target it must define, the release to fetch, its SHA-256
set(ASYMKV_GTest
    GTest::gtest_main https://github.com/google/googletest/archive/refs/tags/v1.14.0.tar.gz
    8ad598c73ad796e0d8280b082cebd82a630d73e73cd3c70057938a6501bba5d7)
set(ASYMKV_benchmark
    benchmark::benchmark https://github.com/google/benchmark/archive/refs/tags/v1.8.3.tar.gz
    6bc180a57d23d4d9515519f92b0c83d61b05b5bab188961f36ac7b06b0d9e9ce)
set(ASYMKV_CLI11
    CLI11::CLI11 https://github.com/CLIUtils/CLI11/archive/refs/tags/v2.4.1.tar.gz
    73b7ec52261ce8fe980a29df6b4ceb66243bb0b779451dbd3d014cfec9fdbb58)
set(ASYMKV_yaml-cpp
    yaml-cpp https://github.com/jbeder/yaml-cpp/archive/refs/tags/0.8.0.tar.gz
    fbe74bbdcee21d656715688706da3c8becfd946d92cd44705cc6098bb23b3a16)
set(ASYMKV_nlohmann_json
    nlohmann_json::nlohmann_json https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz
    d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d)

# asymkv_find(PACKAGE): the target in the table above, in the directory that calls. A macro: find_package's targets
# belong to the caller's directory.
macro(asymkv_find PACKAGE)
  list(GET ASYMKV_${PACKAGE} 0 ASYMKV_TARGET)
  if(NOT TARGET ${ASYMKV_TARGET})
    find_package(${PACKAGE} QUIET)
  endif()
  if(NOT TARGET ${ASYMKV_TARGET})
    list(GET ASYMKV_${PACKAGE} 1 ASYMKV_URL)
    list(GET ASYMKV_${PACKAGE} 2 ASYMKV_SHA256)
    message(STATUS "asymkv: no ${PACKAGE} found, fetching ${ASYMKV_URL}")
    set(BENCHMARK_ENABLE_TESTING OFF) # else benchmark builds its own tests
    set(INSTALL_GTEST OFF)
    FetchContent_Declare(${PACKAGE} URL ${ASYMKV_URL} URL_HASH SHA256=${ASYMKV_SHA256})
    FetchContent_MakeAvailable(${PACKAGE})
  endif()
endmacro()
