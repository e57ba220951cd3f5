// A service whose methods wait and compute in classes of Java that call them back, and say for how long: owners of stacks.

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.Arrays;
import java.util.Random;
import java.util.concurrent.CountDownLatch;

public class Orders {
    static final ThreadMXBean THREADS = ManagementFactory.getThreadMXBean();
    static final BufferedReader INPUT = new BufferedReader(new InputStreamReader(System.in));
    static volatile long sink;

    static double now() {
        return System.nanoTime() / 1e9;
    }

    static double used() {
        return THREADS.getCurrentThreadCpuTime() / 1e9;
    }

    /** Called by the sort of the library. */
    static int byPrice(Integer one, Integer other) {
        return Integer.compare(one * 7919 % 503, other * 7919 % 503);
    }

    static void render(Integer[] orders) {
        Arrays.sort(orders, Orders::byPrice);
        sink += Arrays.deepHashCode(orders) + orders.length;
    }

    static double renders(double seconds) {
        double begin = used();
        Random random = new Random(1);
        Integer[] orders = new Integer[500];
        do {
            for (int at = 0; at < orders.length; at++) orders[at] = random.nextInt(10_000);
            render(orders);
        } while (used() - begin < seconds);
        return used() - begin;
    }

    /** Waits for a monitor that another thread holds for so long. */
    static double take(int milliseconds) throws InterruptedException {
        CountDownLatch held = new CountDownLatch(1);
        Thread holder = new Thread(() -> {
            synchronized (THREADS) {
                held.countDown();
                pause(milliseconds);
            }
        });
        holder.start();
        held.await();
        double begin = now();
        synchronized (THREADS) {
            sink++;
        }
        begin = now() - begin;
        holder.join();
        return begin;
    }

    static void pause(int milliseconds) {
        try {
            Thread.sleep(milliseconds);
        } catch (InterruptedException e) {
            throw new IllegalStateException(e);
        }
    }

    static double receive(Socket from) throws IOException {
        double begin = now();
        if (from.getInputStream().read() < 0) throw new IOException("the end");
        return now() - begin;
    }

    static void send(Socket to, int times, int milliseconds) {
        try {
            for (int n = 0; n < times; n++) {
                pause(milliseconds);
                to.getOutputStream().write(1);
            }
        } catch (IOException e) {
            throw new IllegalStateException(e);
        }
    }

    static void step(String name, String facts) throws IOException {
        System.out.printf("{\"step\":\"%s\",\"pid\":%d,\"facts\":{%s}}%n", name, ProcessHandle.current().pid(), facts);
        if (INPUT.readLine() == null) System.exit(0);
    }

    static String waits(Socket in, Socket out, int times, int milliseconds) throws Exception {
        double taken = 0, received = 0;
        for (int n = 0; n < times; n++) taken += take(milliseconds);
        Thread sender = new Thread(() -> send(out, times, milliseconds));
        sender.start();
        for (int n = 0; n < times; n++) received += receive(in);
        sender.join();
        return String.format("\"take\":%f,\"receive\":%f", taken, received);
    }

    public static void main(String[] arguments) throws Exception {
        try (ServerSocket listener = new ServerSocket(0, 1, InetAddress.getLoopbackAddress());
                Socket out = new Socket(listener.getInetAddress(), listener.getLocalPort());
                Socket in = listener.accept()) {
            step("ready", "");
            // Each method so often that the virtual machine compiles it, and for good.
            for (int n = 0; n < 1000; n++) renders(0);
            renders(0.5);
            waits(in, out, 1000, 0);
            step("warm", "");
            step("computed", String.format("\"render\":%f", renders(1)));
            for (; ; ) step("waited", waits(in, out, 10, 100));
        }
    }
}
