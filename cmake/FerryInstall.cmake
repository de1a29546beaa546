# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# `cmake --install`: library, headers and the package that find_package(ferry) finds.
include(CMakePackageConfigHelpers)
set(ferry_cmake_dir "${CMAKE_INSTALL_LIBDIR}/cmake/ferry")

install(TARGETS ferry EXPORT ferry_targets ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(DIRECTORY include/ferry DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h")
install(EXPORT ferry_targets NAMESPACE ferry:: FILE ferry-targets.cmake DESTINATION "${ferry_cmake_dir}")
configure_package_config_file(cmake/ferry-config.cmake.in "${CMAKE_CURRENT_BINARY_DIR}/ferry-config.cmake"
  INSTALL_DESTINATION "${ferry_cmake_dir}")
# Before 1.0 every minor version may change the API.
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/ferry-config-version.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/ferry-config.cmake" "${CMAKE_CURRENT_BINARY_DIR}/ferry-config-version.cmake"
  DESTINATION "${ferry_cmake_dir}")
