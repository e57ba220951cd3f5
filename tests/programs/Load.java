// Load for OpenJDK: compiled and interpreted code, stubs, the collector, native code, waits; runs until it is killed.

import java.io.File;
import java.io.RandomAccessFile;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.locks.ReentrantLock;
import java.util.zip.CRC32;
import java.util.zip.Deflater;

public class Load {
    static final ReentrantLock LOCK = new ReentrantLock();
    static volatile long sink;

    static long leafCompute(int n) {
        long sum = 0;
        for (int i = 0; i < 200_000; i++) sum = (sum * 31 + i * n) % 65521;
        return sum;
    }

    static long innerCompute(int n) {
        return leafCompute(n) + 1;
    }

    static long outerCompute(int n) {
        return innerCompute(n) + 1;
    }

    /** Excluded from compilation by the command line. */
    static long interpreted(int n) {
        long sum = 0;
        for (int i = 0; i < 3_000; i++) sum += i ^ n;
        return sum;
    }

    static long fib(int n) {
        return n < 2 ? n : fib(n - 1) + fib(n - 2);
    }

    static int collections(int n) {
        Map<String, List<Integer>> map = new HashMap<>();
        for (int i = 0; i < 500; i++) map.computeIfAbsent("key" + i % 50, k -> new ArrayList<>()).add(i * n);
        Integer[] numbers = map.get("key7").toArray(new Integer[0]);
        Arrays.sort(numbers, (a, b) -> Integer.compare(b, a));
        return String.join(",", map.keySet()).hashCode() + numbers.length;
    }

    static int failing(int n) {
        try {
            throw new IllegalStateException("number " + n);
        } catch (IllegalStateException e) {
            return e.getStackTrace().length;
        }
    }

    static void compute() {
        byte[] data = new byte[65536];
        byte[] packed = new byte[65536];
        for (int n = 0; ; n++) {
            sink += outerCompute(n % 7) + interpreted(n) + fib(15) + collections(n) + failing(n);
            System.arraycopy(data, 0, packed, n % 64, 60_000);
            CRC32 crc = new CRC32();
            crc.update(packed);
            Deflater deflater = new Deflater(1);
            deflater.setInput(data);
            deflater.finish();
            deflater.deflate(packed);
            deflater.end();
            sink += crc.getValue() + System.nanoTime();
            LOCK.lock();
            try {
                sink += fib(5);
            } finally {
                LOCK.unlock();
            }
        }
    }

    static void files() throws Exception {
        File file = File.createTempFile("load", null);
        file.deleteOnExit();
        byte[] data = new byte[4096];
        try (RandomAccessFile open = new RandomAccessFile(file, "rw")) {
            for (; ; ) {
                open.seek(0);
                open.write(data);
                open.seek(0);
                open.read(data);
                LOCK.lock();
                LOCK.unlock();
                Thread.sleep(1);
            }
        }
    }

    static void start(String name, Work work) {
        Thread thread = new Thread(() -> {
            try {
                work.run();
            } catch (Exception e) {
                throw new RuntimeException(e);
            }
        }, name);
        thread.start();
    }

    interface Work {
        void run() throws Exception;
    }

    public static void main(String[] arguments) {
        SynchronousQueue<Integer> queue = new SynchronousQueue<>();
        start("compute", Load::compute);
        start("files", Load::files);
        start("put", () -> {
            for (int n = 0; ; n++) queue.put(n);
        });
        start("take", () -> {
            for (; ; ) {
                sink += queue.take();
                Thread.sleep(1);
            }
        });
    }
}
