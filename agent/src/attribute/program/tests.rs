//! Command lines as real programs have them.

use super::*;
use crate::host::damage::{Bounds, harmless};

#[test]
fn names_as_a_person_would_say_them() {
    for (exe, cmdline, name) in [
        // Python
        (
            "/usr/bin/python3.11",
            "python3 /usr/bin/gunicorn -w 4 shop.wsgi:app",
            "gunicorn shop.wsgi",
        ),
        (
            "/usr/bin/python3.11",
            "python3 /usr/bin/gunicorn --preload shop.wsgi:app -b localhost:80",
            "gunicorn shop.wsgi",
        ),
        (
            "/usr/bin/python3.11",
            "python3 /usr/bin/gunicorn shop.wsgi",
            "gunicorn shop.wsgi",
        ),
        (
            "/usr/bin/python3.11",
            "python3 /usr/bin/uvicorn --reload app:app",
            "uvicorn app",
        ),
        (
            "/usr/bin/python3.11",
            "python3 -m uvicorn --port 80 app:make()",
            "uvicorn app",
        ),
        ("/usr/bin/python3.11", "python3 -m http.server 80", "http.server"),
        ("/usr/bin/python3.11", "python3 -umhttp.server", "http.server"),
        (
            "/usr/bin/python3.11",
            "python3 -u /srv/worker.py --token x",
            "worker.py",
        ),
        (
            "/usr/bin/python3.11",
            "python3 -Xpycache_prefix=/tmp /srv/shop/main.py",
            "shop",
        ),
        ("/usr/bin/python3.11", "python3 -W ignore worker.py", "worker.py"),
        ("/usr/bin/python3.11", "python3 -c print(1)", "python"),
        ("/usr/bin/python3.11", "python3 -Ic print(1)", "python"),
        (
            "/usr/bin/python3.11",
            "python3 /usr/bin/celery -A proj worker",
            "celery proj",
        ),
        (
            "/usr/bin/python3.11",
            "python -m celery -A proj worker",
            "celery proj",
        ),
        (
            "/usr/bin/python3.11",
            "python manage.py runserver 0.0.0.0:80",
            "manage.py runserver",
        ),
        (
            "/usr/bin/python3.11",
            "python /usr/bin/flask --app shop run",
            "flask shop",
        ),
        // Java
        (
            "/usr/lib/jvm/bin/java",
            "java -Xmx1g -cp a.jar:b.jar com.shop.Orders",
            "Orders",
        ),
        (
            "/usr/lib/jvm/bin/java",
            "java -cp a.jar:b.jar -Dx=y com.shop.Main --x",
            "shop.Main",
        ),
        ("/usr/lib/jvm/bin/java", "java -jar /srv/orders.jar", "orders.jar"),
        ("/usr/lib/jvm/bin/java", "java -jar orders.jar -m x", "orders.jar"),
        (
            "/usr/lib/jvm/bin/java",
            "java -p lib --module shop/com.shop.Orders",
            "Orders",
        ),
        (
            "/usr/lib/jvm/bin/java",
            "java @options -cp x org.apache.catalina.startup.Bootstrap start",
            "tomcat",
        ),
        ("/usr/lib/jvm/bin/java", "java -version", "java"),
        // JavaScript
        (
            "/usr/bin/node",
            "node --max-old-space-size=512 /srv/cart/index.js",
            "cart",
        ),
        ("/usr/bin/node", "node /srv/cart/dist/server.js", "cart"),
        ("/usr/bin/node", "node /srv/app/server.js", "server.js"),
        ("/usr/bin/node", "node -r dotenv/config worker.js", "worker.js"),
        ("/usr/bin/node", "node -pe 1+1", "node"),
        ("/usr/bin/node", "node --eval=secret", "node"),
        ("/usr/bin/node", "node /usr/bin/npm start", "npm"),
        ("/usr/bin/node", "[npm start]", "npm"),
        ("/usr/bin/node", "[next-server (v14.1.0)]", "next-server"),
        ("/usr/bin/node", "[node /srv/cart/index.js]", "cart"),
        ("/usr/bin/deno", "deno run -A /srv/cart/main.ts", "cart"),
        // Ruby, PHP, Perl, shells, .NET, Erlang
        ("/usr/bin/ruby3.1", "ruby bin/rails server -p 80", "rails server"),
        (
            "/usr/bin/ruby3.1",
            "ruby /usr/bin/bundle exec rake jobs:work",
            "rake jobs:work",
        ),
        ("/usr/bin/ruby3.1", "ruby /usr/bin/puma -C config/puma.rb", "puma"),
        (
            "/usr/bin/ruby3.1",
            "[puma 6.4.2 (tcp://0.0.0.0:80) [shop]]",
            "puma shop",
        ),
        (
            "/usr/bin/ruby3.1",
            "[puma: cluster worker 0: 17 [shop]]",
            "puma shop",
        ),
        ("/usr/bin/ruby3.1", "[sidekiq 7.2 shop [0 of 5 busy]]", "sidekiq"),
        (
            "/usr/bin/python3.11",
            "[gunicorn: master [shop.wsgi:app]]",
            "gunicorn shop.wsgi",
        ),
        (
            "/usr/bin/python3.11",
            "[[celeryd: celery@db:MainProcess] -active- (worker)]",
            "celery",
        ),
        (
            "/usr/sbin/php-fpm8.2",
            "[php-fpm: master process (/etc/php/8.2/fpm/php-fpm.conf)]",
            "php-fpm",
        ),
        ("/usr/sbin/php-fpm8.2", "[php-fpm: pool www]", "php-fpm"),
        ("/usr/sbin/php-fpm8.2", "[php-fpm: pool shop]", "php-fpm shop"),
        (
            "/usr/bin/php8.2",
            "php artisan queue:work --tries=3",
            "artisan queue:work",
        ),
        (
            "/usr/bin/php8.2",
            "php -d memory_limit=1G -f /srv/job.php",
            "job.php",
        ),
        ("/usr/bin/php8.2", "php -r secret();", "php"),
        ("/usr/bin/perl", "perl -w -Mstrict /opt/script.pl", "script.pl"),
        ("/usr/bin/perl", "perl -lne secret", "perl"),
        ("/usr/bin/bash", "bash /opt/run-all.sh", "run-all.sh"),
        ("/usr/bin/bash", "bash -o pipefail script.sh", "script.sh"),
        ("/usr/bin/bash", "-bash", "bash"),
        ("/usr/bin/bash", "bash -lc secret", "bash"),
        ("/usr/bin/dash", "sh -c secret", "dash"),
        ("/usr/bin/dotnet", "dotnet /app/Orders.dll --urls x", "Orders.dll"),
        ("/usr/bin/dotnet", "dotnet exec Orders.dll", "Orders.dll"),
        (
            "/usr/lib/erlang/erts-13.1/bin/beam.smp",
            "beam.smp -W w -- -root /x -sname rabbit@db1",
            "rabbit",
        ),
        (
            "/usr/lib/erlang/erts-13.1/bin/beam.smp",
            "beam.smp -- -root /x",
            "beam",
        ),
        // Programs with titles and programs with several names
        ("/usr/sbin/nginx", "[nginx: worker process]", "nginx"),
        (
            "/usr/lib/postgresql/15/bin/postgres",
            "[postgres: walwriter ]",
            "postgres",
        ),
        (
            "/usr/lib/postgresql/15/bin/postgres",
            "[postgres: shop shop 10.0.0.1(4711) idle]",
            "postgres",
        ),
        (
            "/usr/lib/postgresql/15/bin/postgres",
            "/usr/lib/postgresql/15/bin/postgres -D /data",
            "postgres",
        ),
        ("/usr/bin/redis-server", "[redis-server *:6379]", "redis-server"),
        (
            "/usr/bin/redis-check-rdb",
            "[/usr/bin/redis-server 127.0.0.1:6379]",
            "redis-server",
        ),
        (
            "/usr/bin/redis-check-rdb",
            "/usr/bin/redis-server /etc/redis/redis.conf",
            "redis-server",
        ),
        ("/usr/sbin/sshd", "[sshd: ann@pts/0]", "sshd"),
        ("/bin/busybox", "httpd -f", "httpd"),
        ("/bin/busybox", "/bin/busybox httpd -f", "httpd"),
        ("/bin/busybox", "/bin/sh /opt/loop.sh", "loop.sh"),
        ("/bin/busybox", "busybox", "busybox"),
        ("/srv/my app/shop", "[/srv/my app/shop]", "shop"),
    ] {
        // Brackets: one string, as a process that set its title has it.
        let cmdline: Vec<String> = match cmdline
            .strip_prefix('[')
            .and_then(|title| title.strip_suffix(']'))
        {
            Some(title) => vec![title.to_owned()],
            None => cmdline.split(' ').map(str::to_owned).collect(),
        };
        assert_eq!(program_name(exe, &cmdline, "x"), name, "{exe} {cmdline:?}");
    }
    assert_eq!(program_name("", &[], "a\nb"), "ab");
    assert_eq!(program_name("", &[], ""), "(unknown)");
    assert_eq!(program_name("/usr/bin/python3", &[], ""), "python");
}

/// No form of an interpreter's options makes code a name.
#[test]
fn code_on_the_command_line_is_never_shown() {
    for interpreter in [
        "python3", "bash", "sh", "perl", "ruby", "node", "php", "lua", "bun",
    ] {
        let letters = match interpreter {
            "python3" | "bash" | "sh" => "c",
            "php" => "r",
            _ => "e",
        };
        for options in [
            format!("-{letters}"),
            format!("-u{letters}"),
            format!("-w -n{letters}"),
        ] {
            let cmdline: Vec<String> = format!("{interpreter} {options} SECRET")
                .split(' ')
                .map(str::to_owned)
                .collect();
            let name = program_name(&format!("/usr/bin/{interpreter}"), &cmdline, "x");
            assert!(!name.contains("SECRET"), "{cmdline:?} became {name}");
        }
    }
}

#[test]
fn damaged_command_lines_harm_nobody() {
    let all: [&[u8]; 5] = [
        b"/usr/bin/python3\0-m\0gunicorn\0--chdir=/srv\0shop.wsgi:app\0",
        b"/usr/bin/java\0-cp\0/opt/a.jar:/opt/b.jar\0-jar\0/opt/orders.jar\0--x\0",
        b"nginx: worker process\0",
        b"/bin/bash\0-lc\0exec env A=1 node /srv/shop/server.js\0",
        b"/usr/bin/ruby\0bundle\0exec\0puma 6.4.2 (tcp://0.0.0.0:3000) [shop]\0",
    ];
    for line in all {
        let bounds = Bounds {
            bytes: 64 * line.len() + 4096,
            allocations: 400,
        };
        harmless(1_000, line, &[], bounds, |damaged| {
            let words: Vec<String> = damaged
                .split(|byte| *byte == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            let exe = words.first().map_or("", String::as_str);
            !program_name(exe, &words, "shop").is_empty()
        })
        .always();
    }
}
