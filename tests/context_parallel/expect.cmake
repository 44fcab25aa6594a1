# expect.cmake: cmake -DCOMMAND=... -DSUCCEEDS=TRUE|FALSE -DOUTPUT=regular expression -P expect.cmake: runs a command and
# wants both its exit status and its output to be as said.
execute_process(
  COMMAND ${COMMAND}
  TIMEOUT 100
  RESULT_VARIABLE result
  OUTPUT_VARIABLE output
  ERROR_VARIABLE output)
message("${output}")
if(result MATCHES "timeout")
  message(FATAL_ERROR "did not end")
endif()
if((SUCCEEDS AND NOT result EQUAL 0) OR (NOT SUCCEEDS AND result EQUAL 0))
  message(FATAL_ERROR "exit status ${result}")
endif()
if(NOT output MATCHES "${OUTPUT}")
  message(FATAL_ERROR "no \"${OUTPUT}\" in the output")
endif()
