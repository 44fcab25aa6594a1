# What the project needs: the system's package where there is one, else a pinned release.
include(FetchContent)

macro(asymkv_find_eigen)
  find_package(Eigen3 3.4 QUIET NO_MODULE)
  if(NOT TARGET Eigen3::Eigen)
    message(STATUS "asymkv: Eigen 3.4 not found, fetching it")
    FetchContent_Declare(eigen GIT_REPOSITORY https://gitlab.com/libeigen/eigen.git GIT_TAG 3.4.0 GIT_SHALLOW ON)
    set(EIGEN_BUILD_DOC OFF)
    set(EIGEN_BUILD_TESTING OFF)
    FetchContent_MakeAvailable(eigen)
  endif()
endmacro()

# asymkv_find(package target repository tag): find_package, else FetchContent
macro(asymkv_find PACKAGE TARGET REPOSITORY TAG)
  find_package(${PACKAGE} QUIET)
  if(NOT TARGET ${TARGET})
    message(STATUS "asymkv: ${PACKAGE} not found, fetching ${TAG}")
    FetchContent_Declare(${PACKAGE} GIT_REPOSITORY ${REPOSITORY} GIT_TAG ${TAG} GIT_SHALLOW ON)
    FetchContent_MakeAvailable(${PACKAGE})
  endif()
endmacro()
