"""Access to memory that a driver changes meanwhile: a field at a time, and the fences between them."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    /* Guest memory: any alignment, each access one load or store that the compiler neither repeats nor leaves out. */
    typedef struct { uint16_t value; } __attribute__((packed, may_alias)) vhu_half;
    typedef struct { uint32_t value; } __attribute__((packed, may_alias)) vhu_word;
    typedef struct { uint64_t value; } __attribute__((packed, may_alias)) vhu_long;
    static inline uint16_t vhu_half_at(const uint8_t *at) { return ((const volatile vhu_half *)at)->value; }
    static inline uint32_t vhu_word_at(const uint8_t *at) { return ((const volatile vhu_word *)at)->value; }
    static inline uint64_t vhu_long_at(const uint8_t *at) { return ((const volatile vhu_long *)at)->value; }
    static inline void vhu_set_half(uint8_t *at, uint16_t value) { ((volatile vhu_half *)at)->value = value; }
    static inline void vhu_set_word(uint8_t *at, uint32_t value) { ((volatile vhu_word *)at)->value = value; }
    static inline void vhu_set_long(uint8_t *at, uint64_t value) { ((volatile vhu_long *)at)->value = value; }
    static inline void vhu_set_byte(uint8_t *at, uint8_t value) { *(volatile uint8_t *)at = value; }
    static inline void vhu_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
    static inline void vhu_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
    static inline void vhu_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    """
    uint16_t vhu_half_at(const uint8_t *at) noexcept nogil
    uint32_t vhu_word_at(const uint8_t *at) noexcept nogil
    uint64_t vhu_long_at(const uint8_t *at) noexcept nogil
    void vhu_set_half(uint8_t *at, uint16_t value) noexcept nogil
    void vhu_set_word(uint8_t *at, uint32_t value) noexcept nogil
    void vhu_set_long(uint8_t *at, uint64_t value) noexcept nogil
    void vhu_set_byte(uint8_t *at, uint8_t value) noexcept nogil
    void vhu_acquire() noexcept nogil
    void vhu_release() noexcept nogil
    void vhu_fence() noexcept nogil
