;; Counts the words of a text: POST it to /wordcount, get an integer.
;;
;; A WAGI module: the request's head is in the environment, its body on standard input; the answer goes to standard
;; output, CGI headers first. `make services/word_count_wasm/word_count.wasm` assembles it.
;;
;; Memory: 0 to 1023 constants, 1024 scratch, 65536 and up the environment, then the text 64 KiB at a time.
(module
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))

  (memory (export "memory") 2)
  (data (i32.const 0) "PATH_INFO=/\00")
  (data (i32.const 16) "PATH_INFO=/wordcount\00")
  (data (i32.const 48) "REQUEST_METHOD=POST\00")
  (data (i32.const 80) "CONTENT_TYPE=multipart/")
  (data (i32.const 128) "Content-Type: text/plain\n\n")
  (data (i32.const 160) "Content-Type: text/plain\n\nWord count: POST a text file to /wordcount, get an integer.\n")
  (data (i32.const 256) "Status: 404\nContent-Type: text/plain\n\nThere is only /wordcount here.\n")
  (data (i32.const 384) "Status: 405\nAllow: POST\nContent-Type: text/plain\n\nPOST a text to /wordcount.\n")
  (data (i32.const 512) "Status: 415\nContent-Type: text/plain\n\nSend the text itself as the body, not a form.\n")

  (global $variables (mut i32) (i32.const 0)) ;; how many there are; their addresses begin at 65536
  (global $words (mut i32) (i32.const 0))
  (global $inside (mut i32) (i32.const 0)) ;; 1 within a word
  (global $point (mut i32) (i32.const 0)) ;; the code point under way
  (global $wanted (mut i32) (i32.const 0)) ;; continuation bytes that it still needs
  (global $least (mut i32) (i32.const 0)) ;; what its length must encode at least (RFC 3629: no overlong forms)

  (func (export "_start")
    (call $read_environment)
    (if (call $has (i32.const 16) (i32.const 21)) (then (call $word_count) (return)))
    (if (call $has (i32.const 0) (i32.const 12)) (then (call $write (i32.const 160) (i32.const 86)) (return)))
    (call $write (i32.const 256) (i32.const 69)))

  (func $word_count
    (if (i32.eqz (call $has (i32.const 48) (i32.const 20)))
      (then (call $write (i32.const 384) (i32.const 77)) (return)))
    (if (call $has (i32.const 80) (i32.const 23)) (then (call $write (i32.const 512) (i32.const 84)) (return)))
    (call $read_text)
    (call $write (i32.const 128) (i32.const 26))
    (call $write_number (global.get $words)))

  ;; --- the request -------------------------------------------------------------------------------------------------

  (func $read_environment
    (local $bytes i32)
    (drop (call $environ_sizes_get (i32.const 1024) (i32.const 1028)))
    (global.set $variables (i32.load (i32.const 1024)))
    (local.set $bytes (i32.add (i32.load (i32.const 1028)) (i32.shl (global.get $variables) (i32.const 2))))
    (drop (memory.grow (i32.shr_u (local.get $bytes) (i32.const 16)))) ;; one page is there already
    (drop (call $environ_get
      (i32.const 65536)
      (i32.add (i32.const 65536) (i32.shl (global.get $variables) (i32.const 2))))))

  ;; Whether a variable begins with the constant; one that ends in a zero byte must match whole.
  (func $has (param $constant i32) (param $length i32) (result i32)
    (local $index i32)
    (block $none
      (loop $next
        (br_if $none (i32.ge_u (local.get $index) (global.get $variables)))
        (if (call $begins
              (i32.load (i32.add (i32.const 65536) (i32.shl (local.get $index) (i32.const 2))))
              (local.get $constant) (local.get $length))
          (then (return (i32.const 1))))
        (local.set $index (i32.add (local.get $index) (i32.const 1)))
        (br $next)))
    (i32.const 0))

  ;; Stops at the first difference, so it never reads past the zero byte that ends a variable.
  (func $begins (param $text i32) (param $constant i32) (param $length i32) (result i32)
    (local $index i32)
    (loop $next
      (if (i32.ne
            (i32.load8_u (i32.add (local.get $text) (local.get $index)))
            (i32.load8_u (i32.add (local.get $constant) (local.get $index))))
        (then (return (i32.const 0))))
      (local.set $index (i32.add (local.get $index) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $index) (local.get $length))))
    (i32.const 1))

  (func $read_text
    (local $at i32)
    (local $end i32)
    (block $done
      (loop $piece
        (i32.store (i32.const 1024) (i32.const 65536)) ;; the iovec: address and length
        (i32.store (i32.const 1028) (i32.const 65536))
        (i32.store (i32.const 1032) (i32.const 0))
        (br_if $done (call $fd_read (i32.const 0) (i32.const 1024) (i32.const 1) (i32.const 1032)))
        (br_if $done (i32.eqz (i32.load (i32.const 1032))))
        (local.set $at (i32.const 65536))
        (local.set $end (i32.add (i32.const 65536) (i32.load (i32.const 1032))))
        (loop $byte
          (call $decode (i32.load8_u (local.get $at)))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br_if $byte (i32.lt_u (local.get $at) (local.get $end))))
        (br $piece)))
    (if (global.get $wanted) (then (call $letter))))

  ;; --- words -------------------------------------------------------------------------------------------------------

  ;; One byte of UTF-8. Bytes that are not UTF-8 count as letters.
  (func $decode (param $byte i32)
    (if (global.get $wanted)
      (then
        (if (i32.eq (i32.and (local.get $byte) (i32.const 0xc0)) (i32.const 0x80))
          (then
            (global.set $point
              (i32.or (i32.shl (global.get $point) (i32.const 6)) (i32.and (local.get $byte) (i32.const 0x3f))))
            (global.set $wanted (i32.sub (global.get $wanted) (i32.const 1)))
            (if (i32.eqz (global.get $wanted)) (then (call $character)))
            (return)))
        (global.set $wanted (i32.const 0))
        (call $letter)))
    (if (i32.lt_u (local.get $byte) (i32.const 0x80))
      (then (call $begin (local.get $byte) (i32.const 0) (i32.const 0)) (call $character) (return)))
    (if (i32.eq (i32.and (local.get $byte) (i32.const 0xe0)) (i32.const 0xc0))
      (then (call $begin (i32.and (local.get $byte) (i32.const 0x1f)) (i32.const 1) (i32.const 0x80)) (return)))
    (if (i32.eq (i32.and (local.get $byte) (i32.const 0xf0)) (i32.const 0xe0))
      (then (call $begin (i32.and (local.get $byte) (i32.const 0x0f)) (i32.const 2) (i32.const 0x800)) (return)))
    (if (i32.eq (i32.and (local.get $byte) (i32.const 0xf8)) (i32.const 0xf0))
      (then (call $begin (i32.and (local.get $byte) (i32.const 0x07)) (i32.const 3) (i32.const 0x10000)) (return)))
    (call $letter))

  (func $begin (param $bits i32) (param $wanted i32) (param $least i32)
    (global.set $point (local.get $bits))
    (global.set $wanted (local.get $wanted))
    (global.set $least (local.get $least)))

  (func $character
    (if (i32.and
          (i32.ge_u (global.get $point) (global.get $least))
          (call $is_space (global.get $point)))
      (then (global.set $inside (i32.const 0)))
      (else (call $letter))))

  (func $letter
    (if (i32.eqz (global.get $inside))
      (then (global.set $words (i32.add (global.get $words) (i32.const 1)))))
    (global.set $inside (i32.const 1)))

  ;; Unicode's White_Space, and the four information separators that Python counts as space, too.
  (func $is_space (param $point i32) (result i32)
    (if (i32.lt_u (local.get $point) (i32.const 0x80))
      (then (return (i32.or
        (call $between (local.get $point) (i32.const 0x09) (i32.const 0x0d))
        (call $between (local.get $point) (i32.const 0x1c) (i32.const 0x20))))))
    (if (call $between (local.get $point) (i32.const 0x2000) (i32.const 0x200a)) (then (return (i32.const 1))))
    (if (call $between (local.get $point) (i32.const 0x2028) (i32.const 0x2029)) (then (return (i32.const 1))))
    (if (i32.eq (local.get $point) (i32.const 0x85)) (then (return (i32.const 1))))
    (if (i32.eq (local.get $point) (i32.const 0xa0)) (then (return (i32.const 1))))
    (if (i32.eq (local.get $point) (i32.const 0x1680)) (then (return (i32.const 1))))
    (if (i32.eq (local.get $point) (i32.const 0x202f)) (then (return (i32.const 1))))
    (if (i32.eq (local.get $point) (i32.const 0x205f)) (then (return (i32.const 1))))
    (i32.eq (local.get $point) (i32.const 0x3000)))

  (func $between (param $value i32) (param $low i32) (param $high i32) (result i32)
    (i32.le_u (i32.sub (local.get $value) (local.get $low)) (i32.sub (local.get $high) (local.get $low))))

  ;; --- the answer --------------------------------------------------------------------------------------------------

  (func $write (param $at i32) (param $length i32)
    (i32.store (i32.const 1024) (local.get $at))
    (i32.store (i32.const 1028) (local.get $length))
    (drop (call $fd_write (i32.const 1) (i32.const 1024) (i32.const 1) (i32.const 1032))))

  ;; Decimal digits, written backwards from 1100.
  (func $write_number (param $number i32)
    (local $at i32)
    (local.set $at (i32.const 1100))
    (loop $digit
      (local.set $at (i32.sub (local.get $at) (i32.const 1)))
      (i32.store8 (local.get $at) (i32.add (i32.const 48) (i32.rem_u (local.get $number) (i32.const 10))))
      (local.set $number (i32.div_u (local.get $number) (i32.const 10)))
      (br_if $digit (local.get $number)))
    (call $write (local.get $at) (i32.sub (i32.const 1100) (local.get $at)))))
