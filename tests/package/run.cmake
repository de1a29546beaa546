# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Installs the build into an empty folder, then configures, builds and runs the user's project against it.
function(step)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

file(REMOVE_RECURSE "${work_dir}")
step(${CMAKE_COMMAND} --install "${build_dir}" --prefix "${work_dir}/prefix")
step(${CMAKE_COMMAND} -S "${source_dir}" -B "${work_dir}/build" -G "${generator}" "-DCMAKE_CXX_COMPILER=${compiler}"
  "-DCMAKE_PREFIX_PATH=${work_dir}/prefix" "-DWANTED_VERSION=${version}" -DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF)
step(${CMAKE_COMMAND} --build "${work_dir}/build")
step("${work_dir}/build/user")
